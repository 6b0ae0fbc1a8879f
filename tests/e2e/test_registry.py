"""The life cycle of a model, using the commands that a person or a flow would run."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from tests.e2e.conftest import LENIENT
from tests.e2e.pipeline import environment, reproduce, write_params

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("warm"), pytest.mark.timeout(900)]

MODEL = "pspnet-demo"


def pspnet(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run the command. Returns its standard output and, with `status`, also its standard error."""
    done = subprocess.run(
        ["pspnet", *arguments],
        cwd=folder,
        env=environment(folder) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


def deliver(folder: Path) -> Any:
    return json.loads(pspnet(folder, "register", "models/segmenter", "--promote", "--json"))


def versions(folder: Path) -> dict[int, list[str]]:
    client = MlflowClient(f"sqlite:///{folder}/.pspnet/mlflow.db")
    aliases = client.get_registered_model(MODEL).aliases
    found = sorted(int(version.version) for version in client.search_model_versions(f"name = '{MODEL}'"))
    return {number: [alias for alias, named in aliases.items() if int(named) == number] for number in found}


def champions(folder: Path) -> list[tuple[str, int, int]]:
    moves = json.loads(pspnet(folder, "models", "history", "--json"))
    assert [move["number"] for move in moves] == list(range(1, len(moves) + 1))
    assert {move["state"] for move in moves} == {"done"}
    return [(move["kind"], move["from_version"], move["to_version"]) for move in moves]


def test_the_life_of_a_model(registered: Path) -> None:
    again = deliver(registered)
    assert (again["version"], again["new"], again["promotion"]["outcome"]) == (1, False, "is champion")
    assert versions(registered) == {1: ["champion"]}

    write_params(registered, finetune__optimizer__learning_rate=0.008, promotion__min_mean_iou=0.99)
    assert reproduce(registered) == ["finetune", "evaluate"]
    second = deliver(registered)
    assert (second["version"], second["new"], second["promotion"]["outcome"]) == (2, True, "refused")
    reasons = {reason["rule"]: reason for reason in second["promotion"]["decision"]["reasons"]}
    assert reasons["loads and predicts"]["passed"]
    assert not reasons["floor"]["passed"]
    assert "at least 0.990 is required" in reasons["floor"]["text"]
    assert reasons["gain"]["text"].startswith("gain ")
    assert versions(registered) == {1: ["champion"], 2: ["challenger"]}
    assert (
        deliver(registered)["promotion"]["decision"] == second["promotion"]["decision"]
    )  # asking the same question again gets the same answer

    write_params(registered, **LENIENT, promotion__approval="manual")
    assert "version 2 has passed and is waiting for approval: pspnet promote 2 --approve" in pspnet(
        registered, "promote", status=1
    )
    assert "passed, waiting for approval" in pspnet(registered, "models")
    assert "version 2 is now champion" in pspnet(registered, "promote", "2", "--approve")
    listed = json.loads(pspnet(registered, "models", "--json"))
    assert {item["version"]: item["aliases"] for item in listed} == versions(registered) == {1: [], 2: ["champion"]}

    assert "version 1 replaces 2 as champion" in pspnet(registered, "rollback", "--why", "misses cars")
    write_params(registered, promotion__approval="auto")
    held = deliver(registered)["promotion"]
    assert held["outcome"] == "held"
    assert any("was rolled back by" in reason["text"] for reason in held["decision"]["reasons"])
    assert "requires a reason" in pspnet(registered, "promote", "2", "--force", status=2)
    assert "version 2 is now champion" in pspnet(registered, "promote", "2", "--force", "--why", "cars are fine now")
    pspnet(registered, "promote", "7", status=1)
    assert champions(registered) == [
        ("promotion", 0, 1), ("promotion", 1, 2), ("rollback", 2, 1), ("promotion", 1, 2),
    ]  # fmt: skip
    assert "cars are fine now" in pspnet(registered, "models", "history")
    assert "finetune.optimizer.learning_rate" in pspnet(registered, "runs")


def test_the_champion_predicts_a_folder_as_its_bundle_does(registered: Path, tmp_path: Path) -> None:
    images = str(registered / "data/raw/images")
    number = next(number for number, aliases in versions(registered).items() if "champion" in aliases)
    pspnet(registered, "predict", images, "--out", str(tmp_path / "champion"))
    pspnet(registered, "predict", images, "--model", str(number), "--out", str(tmp_path / "number"))
    masks = sorted((tmp_path / "champion/masks").rglob("*.png"))
    assert len(masks) == 40
    for mask in masks[:5]:
        other = tmp_path / "number/masks" / mask.relative_to(tmp_path / "champion/masks")
        assert np.array_equal(np.asarray(Image.open(mask)), np.asarray(Image.open(other)))
    unknown = ("predict", images, "--model", "9", "--out", str(tmp_path / "x"))
    assert "has no version '9'" in pspnet(registered, *unknown, status=1)


def test_the_champion_is_evaluated_on_new_test_images_too(registered: Path) -> None:
    """A report on an old test split says nothing about the champion on the current split."""
    write_params(registered, finetune__optimizer__learning_rate=0.001)
    for mask in sorted((registered / "data/raw/masks").glob("*.png"))[:8]:
        (image,) = (registered / "data/raw/images").glob(f"{mask.stem}.*")
        for path in (mask, image):
            shutil.copyfile(path, path.with_name(f"another{path.name}"))
    reproduce(registered)
    decision = deliver(registered)["promotion"]["decision"]
    assert decision["champion"] is not None
    reasons = {reason["rule"]: reason for reason in decision["reasons"]}
    assert reasons["same test split"]["passed"]
    assert decision["candidate"]["images"] == decision["champion"]["images"]
    assert list((registered / ".pspnet/evaluations").iterdir())
