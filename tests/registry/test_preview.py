"""`pspnet retrain` starts no flow if promoting would change nothing."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pspnet.registry.evidence import LocalData
from pspnet.registry.model_registry import ModelRegistry, open_registry
from pspnet.registry.preview import headline
from pspnet.registry.promotion import promote
from pspnet.registry.provenance import installed
from pspnet.registry.registration import Results, register
from pspnet.registry.versions import CHALLENGER, CHAMPION, Version
from tests.parameters import demo_params
from tests.registry.registrar import CLASSES, make

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns about its own code

MODEL = "pspnet-demo"
RULES: Mapping[str, Any] = {"promotion__min_mean_iou": 0.0}


def opened(state: Path, **rules: Any) -> ModelRegistry:
    return open_registry(state, demo_params(**{**RULES, **rules}))


def results(folder: Path, number: int) -> Results:
    if not folder.joinpath(str(number)).exists():
        make(folder / str(number), number, CLASSES, demo_params().predict)
    own = folder / str(number)
    return Results(own / "bundle", own / "report", folder / "none", folder / "none")


def registered(registry: ModelRegistry, found: Results) -> Version:
    """Register a version. It is marked as known to load, so that no process is started to check that."""
    version, _ = register(registry, found)
    environment = hashlib.sha256(json.dumps(dict(installed()), sort_keys=True).encode()).hexdigest()
    folder = registry.versions.folder(version).parent
    (folder / "answered.json").write_text(json.dumps({"environment": environment}))
    return version


def promoted(registry: ModelRegistry, version: Version, found: Results) -> str:
    return promote(registry, version, LocalData(found.prepared, found.report)).headline(MODEL)


def test_a_bundle_that_is_already_champion_needs_no_promotion(state: Path, tmp_path: Path) -> None:
    registry, first = opened(state), results(tmp_path, 5)
    assert headline(registry, first) is None  # there is no version yet
    version = registered(registry, first)
    assert headline(registry, first) is None  # there is no champion
    text = promoted(registry, version, first)
    assert text == f"{MODEL}: version 1 is now champion"
    assert (
        headline(registry, first) == f"{MODEL}: version 1 is already the champion" == promoted(registry, version, first)
    )

    registry.client.set_tag(version.run_id, "pspnet.version", "")
    assert headline(registry, first) is None  # the run does not specify the version
    register(registry, first)
    assert headline(registry, first)

    registry.versions.remove_alias(CHAMPION)
    assert headline(registry, first) is None  # the champion is missing


def test_a_decision_holds_until_the_question_changes(state: Path, tmp_path: Path) -> None:
    registry, better, worse = opened(state), results(tmp_path, 6), results(tmp_path, 4)
    promoted(registry, registered(registry, better), better)
    second = registered(registry, worse)
    assert headline(registry, worse) is None  # nothing has been decided yet
    text = promoted(registry, second, worse)
    assert text == f"{MODEL}: version 2 is not promoted"
    assert headline(registry, worse) == text

    lenient = {"promotion__min_gain": -1.0, "promotion__max_class_loss": 1.0}
    assert headline(opened(state, **lenient), worse) is None  # the rules are different
    waiting = opened(state, **lenient, promotion__approval="manual")
    assert promoted(waiting, second, worse).startswith(f"{MODEL}: version 2 has passed and is waiting")
    assert headline(waiting, worse) == promoted(waiting, second, worse)
    # No approval is needed now, so the version would be promoted.
    assert headline(opened(state, **lenient), worse) is None
    assert waiting.versions.alias(CHAMPION) == 1

    registry.versions.remove_alias(CHALLENGER)
    assert headline(registry, worse) is None  # `register` would set the alias again
