"""`pspnet data ...` on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pspnet.config.dataset import DatasetParams
from tests.command import pspnet
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise, write


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 3:9] = 1
    for number in range(20):
        write(tmp_path / f"data/raw/photos/{number}.jpg", encoded(noise(8, 12, seed=number), "JPEG"))
        write(tmp_path / f"data/raw/photos/{number}_mask.png", encoded(mask))
    return tmp_path / "data/raw"


def test_inspect_prints_a_report_and_a_section_to_paste(raw: Path, tmp_path: Path) -> None:
    done = pspnet("data", "inspect", raw, cwd=tmp_path)
    assert (done.stderr, done.returncode) == ("", 0)
    assert f"{raw}: layout folder (names: photos/0.jpg has the mask photos/0_mask.png)\n" in done.stdout
    assert "20 images, 20 with a mask, 0 without" in done.stdout
    report, _, rest = done.stdout.partition("# ---- params.yaml")
    section, _, after = rest.partition("# ---- end ----")
    assert after == "\n"
    dataset = yaml.safe_load(section.partition("\n")[2])["dataset"]
    assert DatasetParams.model_validate(dataset).classes == {"class_0": 0, "class_1": 1}
    assert "class_1" in report
    with Image.open(tmp_path / "inspect.png") as sheet:
        assert sheet.width > 1000


def test_the_section_from_inspect_works_in_params_yaml(raw: Path, tmp_path: Path) -> None:
    printed = pspnet("data", "inspect", raw, cwd=tmp_path).stdout.partition("# ---- params.yaml")[2].partition("\n")[2]
    params = yaml.safe_load((ROOT / "recipes/start.yaml").read_text())
    write(tmp_path / "params.yaml", yaml.safe_dump({**params, **yaml.safe_load(printed)}))
    done = pspnet("prepare", "--raw", "data/raw", "--out", "data/prepared", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "data/prepared/dataset.json").read_text())["counts"]["prepared"] == 20


def test_inspect_as_json_gives_the_same_facts(raw: Path, tmp_path: Path) -> None:
    done = pspnet("data", "inspect", raw, "--json", "--sheet", "pictures/sheet.png", cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert facts["layout"] == "folder"
    assert (facts["images"], facts["masks"]) == (20, 20)
    [around, inside] = facts["values"]
    assert (around["value"], around["pixels"], around["share"], around["masks"]) == (0, 20 * 78, 0.8125, 20)
    assert inside["at_border"] == pytest.approx(14 / 18)
    assert DatasetParams.model_validate(facts["dataset"])
    assert (tmp_path / facts["sheet"]).is_file()


def test_inspect_says_that_images_without_masks_are_not_enough(raw: Path, tmp_path: Path) -> None:
    for path in raw.rglob("*_mask.png"):
        path.unlink()
    done = pspnet("data", "inspect", raw, cwd=tmp_path)
    assert "images but no masks. That is enough only for pretraining" in done.stdout
    assert "params.yaml" not in done.stdout
    assert done.returncode == 1


def test_the_contact_sheet_is_not_written_into_the_inspected_folder(raw: Path) -> None:
    done = pspnet("data", "inspect", ".", cwd=raw)
    message = "inspect.png: is inside the inspected folder; expected a path outside it. Choose one: --sheet PATH\n"
    assert (done.stderr, done.stdout, done.returncode) == (message, "", 1)
    assert not (raw / "inspect.png").exists()


def test_an_unwritable_contact_sheet_gives_one_message(raw: Path, tmp_path: Path) -> None:
    write(tmp_path / "file", "words")
    done = pspnet("data", "inspect", raw, "--sheet", "file/sheet.png", cwd=tmp_path)
    assert done.stderr.startswith("file/sheet.png: cannot be written (")
    assert (done.stdout, done.returncode) == ("", 1)


def test_inspecting_a_missing_folder_gives_one_message(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw)
    done = pspnet("data", "inspect", "data/raw", cwd=tmp_path)
    assert done.stderr == "data/raw: is missing; expected the data folder\n"
    assert (done.stdout, done.returncode) == ("", 1)
    assert not (tmp_path / "inspect.png").exists()
