"""Today's code reads what commit 47d5f51 wrote: a bundle, a prepared set, two versions, the audit, MLflow's database.

`older-47d5f51.tar.xz` was created at that commit, in /before, from twelve synthetic images, by running `pspnet retrain`
with a tiny network, then again with a different learning rate. Version 1 became champion, then version 2.
"""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.model.bundle import Bundle
from tests.e2e.conftest import LENIENT
from tests.e2e.pipeline import move_addresses, run, write_params
from tests.raw.rawdata import encoded, noise
from tests.serving.processes import port_of, post, predicted, process, split

STATE = Path(__file__).with_name("older-47d5f51.tar.xz")
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(STATE) as archive:
        archive.extractall(folder, **SAFELY)
    return folder


@pytest.fixture
def place(before: Path, finished: Path) -> Path:
    """A checkout of today's code with the older registry and a bundle that is not registered yet."""
    shutil.rmtree(finished / ".pspnet/mlartifacts", ignore_errors=True)
    (finished / ".pspnet/mlflow.db").unlink(missing_ok=True)
    shutil.copytree(before / ".pspnet", finished / ".pspnet", dirs_exist_ok=True)
    move_addresses(finished / ".pspnet/mlflow.db", "/before/", f"{finished}/")
    write_params(finished, **LENIENT)
    return finished


def champions(folder: Path) -> list[tuple[str, int, int]]:
    moves = json.loads(run(folder, "pspnet", "models", "history", "--json"))
    assert {move["state"] for move in moves} == {"done"}
    return [(move["kind"], move["from_version"], move["to_version"]) for move in moves]


def test_a_bundle_still_opens(before: Path) -> None:
    bundle = Bundle.load(before / "models/segmenter")
    assert len(bundle.classes) == 6


def test_a_prepared_set_still_opens(before: Path) -> None:
    dataset = PreparedDataset.open(before / "data/prepared")
    assert sum(dataset.images.values()) == 12
    assert dataset.reader().image(0, 0).shape == (96, 128, 3)


@pytest.mark.e2e
@pytest.mark.usefixtures("warm")
def test_versions_and_audit_continue_where_the_older_code_stopped(place: Path, tmp_path: Path) -> None:
    assert champions(place) == [("promotion", 0, 1), ("promotion", 1, 2)]
    lineage = json.loads(run(place, "pspnet", "lineage", "1", "--json"))
    assert lineage["pretraining"] == "jigsaw"  # in the older params, these settings had other names
    assert lineage["params"]["differ_today"]["pretrain.method"] == {"then": "jigsaw", "today": None}
    done = json.loads(run(place, "pspnet", "register", "models/segmenter", "--promote", "--json").splitlines()[-1])
    reasons = {reason["rule"]: reason["passed"] for reason in done["promotion"]["decision"]["reasons"]}
    assert reasons["same test split"]  # the older champion was evaluated on today's split, by the older code
    assert done["promotion"]["outcome"] == "promoted"
    assert "version 2 replaces 3 as champion" in run(place, "pspnet", "rollback", "--why", "a test")
    assert champions(place)[2:] == [("promotion", 2, 3), ("rollback", 3, 2)]

    images = str(place / "data/raw/images")
    run(place, "pspnet", "predict", images, "--out", str(tmp_path / "masks"))
    masks = sorted((tmp_path / "masks/masks").rglob("*.png"))
    assert len(masks) == 40
    assert np.asarray(Image.open(masks[0])).shape == (96, 128)


@pytest.mark.e2e
def test_a_version_is_still_served(place: Path, before: Path, stand_ins: Path) -> None:
    with process([stand_ins / "pspnet", "serve", "--port", 0], place, PYTHONPATH=str(place)) as started:
        image = noise(30, 50)
        mask = post(port_of(started, place), split(encoded(image))).mask()
    assert np.array_equal(mask, predicted(before / "models/segmenter", image))
