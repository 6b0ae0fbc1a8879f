"""`pspnet data inspect --use N --write`: choosing a reading, and writing it into params.yaml."""

import json
import shutil
from pathlib import Path

import pytest

from pspnet.config.params import load_params
from pspnet.config.reading import read_yaml
from tests.command import Done, pspnet
from tests.inspection import sets
from tests.parameters import ROOT
from tests.raw.rawdata import write

DATASET_ENDS = "\n\nprepare:\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


def inspect(checkout: Path, *options: str) -> Done:
    return pspnet("data", "inspect", "data/raw", *options, cwd=checkout)


def test_only_the_section_dataset_is_written(checkout: Path) -> None:
    sets.blurred(checkout / "data/raw")
    before = (checkout / "params.yaml").read_text()
    done = inspect(checkout, "--write")
    assert (done.stderr, done.returncode) == ("", 0)
    after = (checkout / "params.yaml").read_text()
    assert after.partition("dataset:")[0] == before.partition("dataset:")[0]
    assert after.partition(DATASET_ENDS)[2] == before.partition(DATASET_ENDS)[2] != ""
    dataset = load_params(checkout / "params.yaml").dataset
    assert dataset.source.mask_kind == "levels"  # type: ignore[union-attr]
    assert dataset.classes == {"background": 0, "object": 1}
    for row in ("written to params.yaml", "dataset.source.mask_kind", "numbers", "levels"):
        assert row in done.stdout
    assert "dataset.source.images" not in done.stdout, "it did not change"
    assert "# ---- params.yaml" not in done.stdout
    backup = done.stdout.rpartition("The previous params are in ")[2].strip().removesuffix(".")
    assert (checkout / backup).read_text() == before


def test_writing_twice_changes_nothing(checkout: Path) -> None:
    sets.blurred(checkout / "data/raw")
    inspect(checkout, "--write")
    before = (checkout / "params.yaml").read_bytes()
    done = inspect(checkout, "--write")
    assert "params.yaml already says this." in done.stdout
    assert (checkout / "params.yaml").read_bytes() == before


def test_names_colors_and_fraction_chosen_by_a_person_are_kept(checkout: Path) -> None:
    sets.plain(checkout / "data/raw")
    inspect(checkout, "--write")
    text = (checkout / "params.yaml").read_text()
    assert "    class_0: 0\n    class_255: 255\n  colors: {}\n" in text
    text = text.replace("class_255: 255\n  colors: {}", "pore: 255\n  colors: {pore: [200, 0, 0]}")
    write(checkout / "params.yaml", text.replace("labeled_fraction: 1.0", "labeled_fraction: 0.5"))
    inspect(checkout, "--write")
    dataset = load_params(checkout / "params.yaml").dataset
    assert dataset.classes == {"class_0": 0, "pore": 255}
    assert (dataset.colors, dataset.labeled_fraction) == ({"pore": [200, 0, 0]}, 0.5)


def test_comments_before_the_next_section_are_kept(checkout: Path) -> None:
    sets.plain(checkout / "data/raw")
    text = (checkout / "params.yaml").read_text()
    own = text.replace(DATASET_ENDS, "\n# ours\n\n# about prepare\nprepare:\n")
    write(checkout / "params.yaml", own)
    inspect(checkout, "--write")
    assert "\n# ours\n\n# about prepare\nprepare:\n" in (checkout / "params.yaml").read_text()


def test_several_readings_are_shown_with_a_picture_of_each(checkout: Path) -> None:
    sets.two_annotators_and_a_region(checkout / "data/raw")
    done = inspect(checkout)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "data/raw can be read in 3 ways:" in done.stdout
    assert (
        "1. layout folder (names: test/images/01_test.png has the mask test/1st_manual/01_manual1.png)" in done.stdout
    )
    assert "3. layout folder (names: test/images/01_test.png has the mask test/mask/01_test_mask.png)" in done.stdout
    assert "Which one is right? Choose it: pspnet data inspect data/raw --use N" in done.stdout
    assert "params.yaml" not in done.stdout
    pictures = {path.name: path.read_bytes() for path in checkout.glob("inspect*.png")}
    assert {*pictures} == {"inspect-1.png", "inspect-2.png", "inspect-3.png"}
    assert len({*pictures.values()}) == 3
    assert all(f"Look at {name}." in done.stdout for name in pictures)


def test_use_chooses_a_reading_by_its_number(checkout: Path) -> None:
    sets.region_beside(checkout / "data/raw")
    done = inspect(checkout, "--use", "2", "--write")
    assert done.returncode == 0, done.stderr
    assert (
        "It can also be read as layout folder (names: images/00.jpg has the mask truth/00.png): --use 1" in done.stdout
    )
    assert "the masks are nearly the same in every image" in done.stdout.lower()
    assert load_params(checkout / "params.yaml").dataset.source.masks == "masks"  # type: ignore[union-attr]


def test_nothing_is_written_before_a_reading_is_chosen(checkout: Path) -> None:
    sets.class_beside(checkout / "data/raw")
    before = (checkout / "params.yaml").read_bytes()
    done = inspect(checkout, "--write")
    message = (
        "params.yaml: was not changed: data/raw can be read in 2 ways. "
        "Look at the pictures and choose one: pspnet data inspect data/raw --write --use N\n"
    )
    assert (done.stderr, done.returncode) == (message, 1)
    assert "1. layout class_folders" in done.stdout
    assert (checkout / "params.yaml").read_bytes() == before


def test_a_number_without_a_reading_gives_one_message(checkout: Path) -> None:
    sets.plain(checkout / "data/raw")
    done = inspect(checkout, "--use", "2")
    message = (
        "--use: is 2, and data/raw has 1 reading; expected the number of a reading. "
        "List them: pspnet data inspect data/raw\n"
    )
    assert (done.stderr, done.returncode) == (message, 1)


def test_unclear_classes_are_not_written(checkout: Path) -> None:
    raw = sets.plain(checkout / "data/raw")
    write(raw / "masks/03.png", sets.photo(3))
    for path in raw.glob("masks/*"):
        shutil.copyfile(raw / "masks/03.png", path) if path.name != "03.png" else None
    done = inspect(checkout, "--write")
    assert "params.yaml: was not changed: it is unclear which values are classes." in done.stderr
    assert done.returncode == 1
    assert "# ---- params.yaml" in done.stdout
    assert (checkout / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_params_for_data_elsewhere_are_not_written(checkout: Path) -> None:
    sets.plain(checkout / "downloads/set")
    done = pspnet("data", "inspect", "downloads/set", "--write", cwd=checkout)
    message = (
        "downloads/set: is not data/raw; expected the folder that params.yaml describes. Move its files into data/raw "
        "first. If data/raw already has data with this layout, add the folder as a batch: "
        "pspnet data add downloads/set\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", message, 1)
    sets.plain(checkout / "data/raw/set")
    done = pspnet("data", "inspect", "data/raw/set", "--write", cwd=checkout)
    message = (
        "data/raw/set: is only a part of data/raw; expected the whole folder. "
        "Inspect all of it: pspnet data inspect data/raw --write\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", message, 1)


def test_everything_prepare_needs_is_written_too(checkout: Path) -> None:
    sets.foreign_cityscapes(checkout / "data/raw")
    before = read_yaml(checkout / "params.yaml")["prepare"]
    done = inspect(checkout, "--write")
    assert "prepare.official_splits" in done.stdout
    after = read_yaml(checkout / "params.yaml")["prepare"]
    assert after == {**before, "official_splits": "val_is_test"}
    assert "official_splits: val_is_test # kept | val_is_test | ignored" in (checkout / "params.yaml").read_text()


def test_the_demos_params_are_replaced_by_the_start_recipe(checkout: Path) -> None:
    sets.plain(checkout / "data/raw")
    write(checkout / "recipes/start.yaml", (ROOT / "recipes/start.yaml").read_text())
    done = inspect(checkout, "--write")
    assert "params.yaml was the demo's; everything outside `dataset` now comes from recipes/start.yaml." in done.stdout
    after, start = read_yaml(checkout / "params.yaml"), read_yaml(ROOT / "recipes/start.yaml")
    assert {**after, "dataset": 0} == {**start, "dataset": 0}
    assert load_params(checkout / "params.yaml").registry.model == "pspnet-start"
    own = (checkout / "params.yaml").read_text().replace("min_gain: 0.0 ", "min_gain: 0.1 ")
    write(checkout / "params.yaml", own)
    inspect(checkout, "--write")
    assert (checkout / "params.yaml").read_text() == own


def test_a_params_file_in_braces_is_written_too(checkout: Path) -> None:
    sets.plain(checkout / "data/raw")
    params = read_yaml(checkout / "params.yaml")
    write(checkout / "params.yaml", json.dumps(params))
    done = inspect(checkout, "--write")
    assert (done.stderr, done.returncode) == ("", 0)
    after = read_yaml(checkout / "params.yaml")
    assert after["dataset"]["classes"] == {"class_0": 0, "class_255": 255}
    assert {**after, "dataset": 0} == {**params, "dataset": 0}


def test_the_requested_shares_are_those_in_params_yaml(checkout: Path) -> None:
    sets.uneven_patients(checkout / "data/raw")
    assert "into val (20% requested)" in inspect(checkout).stdout.replace("\n", " ")
    text = (checkout / "params.yaml").read_text().replace("split_by: hash  ", "split_by: stratified")
    write(checkout / "params.yaml", text)
    assert "requested" not in inspect(checkout).stdout


def test_json_has_the_readings(checkout: Path) -> None:
    sets.two_annotators_in_one_folder(checkout / "data/raw")
    facts = json.loads(inspect(checkout, "--json").stdout)
    assert [one["number"] for one in facts["readings"]] == [1, 2]
    assert (facts["layout"], facts["dataset"], facts["used"]) == (None, None, None)
    assert facts["sheets"] == ["inspect-1.png", "inspect-2.png"]
    facts = json.loads(inspect(checkout, "--json", "--use", "2").stdout)
    assert (facts["layout"], facts["used"], facts["sheets"]) == ("folder", 2, [])


def test_images_alone_end_with_status_1_and_write_nothing(checkout: Path) -> None:
    for number in range(5):
        write(checkout / f"data/raw/photos/{number}.jpg", sets.photo(number, "JPEG"))
    done = inspect(checkout, "--write")
    assert "images but no masks" in done.stdout
    assert done.returncode == 1
    assert (checkout / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
