"""`pspnet retrain` starts no flow where promoting would change nothing: only a standing answer counts."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pspnet.commands.gate import Data
from pspnet.commands.promote import promote
from pspnet.commands.register import Results, register
from pspnet.commands.standing import headline
from pspnet.commands.workshop import Workshop, open_workshop
from pspnet.registry.provenance import installed
from pspnet.registry.versions import CHALLENGER, CHAMPION, Version
from tests.parameters import demo_params
from tests.registry.registrar import CLASSES, make

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's, of its own code

MODEL = "pspnet-demo"
RULES: Mapping[str, Any] = {"promotion__min_mean_iou": 0.0}


def opened(state: Path, **rules: Any) -> Workshop:
    return open_workshop(state, demo_params(**{**RULES, **rules}))


def results(folder: Path, number: int) -> Results:
    if not folder.joinpath(str(number)).exists():
        make(folder / str(number), number, CLASSES, demo_params().predict)
    own = folder / str(number)
    return Results(own / "bundle", own / "report", folder / "none", folder / "none")


def registered(shop: Workshop, found: Results) -> Version:
    """A version of which it is known that it loads: its own process is not asked."""
    version, _ = register(shop, found)
    environment = hashlib.sha256(json.dumps(dict(installed()), sort_keys=True).encode()).hexdigest()
    folder = shop.versions.folder(version).parent
    (folder / "answered.json").write_text(json.dumps({"environment": environment}))
    return version


def promoted(shop: Workshop, version: Version, found: Results) -> str:
    return promote(shop, version, Data(found.prepared, found.report)).headline(MODEL)


def test_of_a_champion_and_of_nothing_else_that_could_become_one(state: Path, tmp_path: Path) -> None:
    shop, first = opened(state), results(tmp_path, 5)
    assert headline(shop, first) is None  # no version yet
    version = registered(shop, first)
    assert headline(shop, first) is None  # no champion
    said = promoted(shop, version, first)
    assert said == f"{MODEL}: version 1 is now champion"
    assert headline(shop, first) == f"{MODEL}: version 1 is the champion already" == promoted(shop, version, first)

    shop.client.set_tag(version.run_id, "pspnet.version", "")
    assert headline(shop, first) is None  # its run leads nowhere
    register(shop, first)
    assert headline(shop, first)

    shop.versions.remove_alias(CHAMPION)
    assert headline(shop, first) is None  # a missing champion


def test_of_an_answer_that_stands_until_another_question_is_asked(state: Path, tmp_path: Path) -> None:
    shop, better, worse = opened(state), results(tmp_path, 6), results(tmp_path, 4)
    promoted(shop, registered(shop, better), better)
    second = registered(shop, worse)
    assert headline(shop, worse) is None  # nobody has asked
    said = promoted(shop, second, worse)
    assert said == f"{MODEL}: version 2 is not promoted"
    assert headline(shop, worse) == said

    lenient = {"promotion__min_gain": -1.0, "promotion__max_class_loss": 1.0}
    assert headline(opened(state, **lenient), worse) is None  # other rules
    waiting = opened(state, **lenient, promotion__approval="manual")
    assert promoted(waiting, second, worse).startswith(f"{MODEL}: version 2 has passed and waits")
    assert headline(waiting, worse) == promoted(waiting, second, worse)
    assert headline(opened(state, **lenient), worse) is None  # approved by the rules now: it would be promoted
    assert waiting.versions.alias(CHAMPION) == 1

    shop.versions.remove_alias(CHALLENGER)
    assert headline(shop, worse) is None  # `register` would set it again
