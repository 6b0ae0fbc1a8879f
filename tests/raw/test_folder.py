import os
from pathlib import Path

import numpy as np
import pytest

from pspnet.config.dataset import FolderParams
from pspnet.errors import Problem, UserError
from pspnet.raw.files import RawFiles
from pspnet.raw.grouping import grouped
from pspnet.raw.layouts.folder import find
from pspnet.raw.masks import Colors, Instances, Levels, Numbers
from pspnet.raw.sample import RawSample
from tests.raw.rawdata import dataset_params, encoded, noise, write, write_pair

MASK = np.zeros((8, 12), np.uint8)


def found(raw: Path, **changes: object) -> tuple[list[RawSample], list[Problem]]:
    dataset = dataset_params(**changes)
    assert isinstance(dataset.source, FolderParams)
    items = list(grouped(find(dataset.source, RawFiles(raw)), dataset.group_pattern, raw))
    problems = [item for item in items if isinstance(item, Problem)]
    return [item for item in items if isinstance(item, RawSample)], problems


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Scene a has a mask for its first image; scene b has no masks."""
    write_pair(tmp_path, "a/1", MASK)
    write_pair(tmp_path, "a/2")
    write_pair(tmp_path, "b/deep/1.old")
    return tmp_path


def test_images_and_masks_are_paired_by_path_without_suffix(raw: Path) -> None:
    write(raw / "images/a/3.JPEG", encoded(noise(8, 12), "JPEG"))
    write(raw / "masks/a/3.tif", encoded(MASK, "TIFF"))
    assert found(raw) == (
        [
            RawSample("a/1", "images/a/1.png", Numbers("masks/a/1.png"), "a", None),
            RawSample("a/2", "images/a/2.png", None, "a", None),
            RawSample("a/3", "images/a/3.JPEG", Numbers("masks/a/3.tif"), "a", None),
            RawSample("b/deep/1.old", "images/b/deep/1.old.png", None, "b", None),
        ],
        [],
    )


def test_folders_can_have_other_names(tmp_path: Path) -> None:
    write(tmp_path / "leftImg/x/1.png", encoded(noise(2, 2)))
    write(tmp_path / "gt/fine/x/1.png", encoded(MASK))
    samples, _ = found(tmp_path, source__images="leftImg", source__masks="gt/fine")
    assert samples == [RawSample("x/1", "leftImg/x/1.png", Numbers("gt/fine/x/1.png"), "x", None)]


def test_samples_are_sorted_by_id(raw: Path) -> None:
    for name in ("z", "a-", "B"):
        write_pair(raw, name)
    samples, _ = found(raw, group_pattern="(.*)")
    assert [sample.id for sample in samples] == ["B", "a-", "a/1", "a/2", "b/deep/1.old", "z"]


def test_the_first_parentheses_of_the_pattern_capture_the_group(raw: Path) -> None:
    samples, _ = found(raw, group_pattern=r"(\w/\w+)")
    assert [sample.group for sample in samples] == ["a/1", "a/2", "b/deep"]


def test_the_pattern_is_searched_for_anywhere_in_the_id(raw: Path) -> None:
    samples, problems = found(raw, group_pattern="(deep|2)")
    assert [sample.group for sample in samples] == ["2", "deep"]
    assert [problem.where for problem in problems] == ["images/a/1.png"]


def test_an_image_without_a_group_is_refused(raw: Path) -> None:
    samples, [problem] = found(raw, group_pattern="^(a)")
    assert [sample.id for sample in samples] == ["a/1", "a/2"]
    assert problem.where == "images/b/deep/1.old.png"
    assert problem.found == "has id 'b/deep/1.old', which contains no group"
    assert problem.expected == "an id in which dataset.group_pattern ^(a) finds a group"
    assert problem.fix == "Change the pattern (`^` stands for the start of the id) or rename the file."


def test_system_files_are_skipped(raw: Path) -> None:
    for name in (".DS_Store", "._1.png", "Thumbs.db", "a/desktop.ini", ".cache/1.png", "__MACOSX/1.png"):
        write(raw / "images" / name, "")
        write(raw / "masks" / name, "")
    samples, problems = found(raw)
    assert len(samples) == 3 and not problems


def test_a_file_without_an_image_suffix_is_refused(raw: Path) -> None:
    write(raw / "images/a/notes.txt", "hello")
    samples, [problem] = found(raw)
    assert len(samples) == 3
    assert (problem.where, problem.found) == ("images/a/notes.txt", "does not have the suffix of an image")


def test_a_mask_without_an_image_is_refused(raw: Path) -> None:
    write(raw / "masks/a/9.png", encoded(MASK))
    _, [problem] = found(raw)
    assert (problem.where, problem.found) == ("masks/a/9.png", "is a mask without an image")


def test_two_images_with_the_same_name_are_both_refused(raw: Path) -> None:
    write(raw / "images/a/1.jpg", encoded(noise(8, 12), "JPEG"))
    samples, problems = found(raw)
    assert [sample.id for sample in samples] == ["a/2", "b/deep/1.old"]
    assert [problem.where for problem in problems] == ["images/a/1.jpg", "images/a/1.png"]
    assert problems[0].found == "has the same id as images/a/1.png"


def test_an_image_with_two_masks_is_refused(raw: Path) -> None:
    write(raw / "masks/a/1.tif", encoded(MASK, "TIFF"))
    samples, [problem] = found(raw)
    assert [sample.id for sample in samples] == ["a/2", "b/deep/1.old"]
    assert problem.found == "has 2 masks: masks/a/1.png, masks/a/1.tif"


def test_a_link_to_a_file_counts_as_a_file_and_a_link_to_a_folder_is_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "images/a/3.png").symlink_to(raw / "images/a/2.png")
    (raw / "images/more").symlink_to(raw / "images/a")
    samples, [problem] = found(raw)
    assert "a/3" in [sample.id for sample in samples]
    assert (problem.where, problem.found) == ("images/more", "is a link to a folder")


def test_a_name_that_is_not_text_is_refused(raw: Path) -> None:
    try:
        Path(os.fsdecode(bytes(raw) + b"/images/a/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    _, [problem] = found(raw)
    assert "invalid UTF-8" in problem.found
    str(problem).encode()


def test_both_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        found(tmp_path)
    assert [Path(problem.where).name for problem in error.value.problems] == ["images", "masks"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="has no image"):
        found(tmp_path)


@pytest.mark.parametrize(("images", "masks"), [("/etc", "masks"), ("../images", "masks"), ("images", "a/../../masks")])
def test_folders_outside_the_raw_folder_are_refused(raw: Path, images: str, masks: str) -> None:
    with pytest.raises(UserError, match=r"params\.yaml"):
        found(raw, source__images=images, source__masks=masks)


def test_masks_that_match_no_image_are_reported_with_an_example(tmp_path: Path) -> None:
    write(tmp_path / "images/1.png", encoded(noise(2, 2)))
    write(tmp_path / "masks/1_mask.png", encoded(MASK))
    with pytest.raises(UserError, match=r"none of 1 masks has the id .*masks/1_mask\.png, one image images/1\.png"):
        found(tmp_path)


def test_names_distinguish_images_from_masks(tmp_path: Path) -> None:
    for name in ("00_img.jpg", "00_gt.png", "01_img.jpg", "deep/02_img.jpg", "deep/02_gt.png", "02_edges.png", ".png"):
        write(tmp_path / "all" / name, encoded(MASK))
    samples, problems = found(
        tmp_path, group_pattern="(.*)", source__images="all", source__masks="all",
        source__image_names=r"(.*)_img\.jpg", source__mask_names=r"(.*)_gt\.png",
    )  # fmt: skip
    assert [(sample.id, sample.image, sample.mask) for sample in samples] == [
        ("00", "all/00_img.jpg", Numbers("all/00_gt.png")),
        ("01", "all/01_img.jpg", None),
        ("deep/02", "all/deep/02_img.jpg", Numbers("all/deep/02_gt.png")),
    ]
    assert [(problem.where, problem.found) for problem in problems] == [
        ("all/02_edges.png", "does not have the name of an image or a mask")
    ]


def test_a_name_that_matches_both_patterns_is_a_mask(tmp_path: Path) -> None:
    for name in ("1.png", "1_mask.png", "2.png"):
        write(tmp_path / name, encoded(MASK))
    samples, problems = found(
        tmp_path, group_pattern="(.*)", source__images=".", source__masks=".", source__mask_names=r"(.*)_mask\.png"
    )
    assert [(sample.id, sample.mask) for sample in samples] == [("1", Numbers("1_mask.png")), ("2", None)]
    assert not problems


def test_images_and_masks_can_differ_only_in_their_suffix(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png", "2.jpg"):
        write(tmp_path / "all" / name, encoded(MASK))
    samples, _ = found(
        tmp_path, group_pattern="(.*)", source__images="all", source__masks="all",
        source__image_names=r"(.*)\.jpg", source__mask_names=r"(.*)\.png",
    )  # fmt: skip
    assert [(sample.image, sample.mask) for sample in samples] == [
        ("all/1.jpg", Numbers("all/1.png")),
        ("all/2.jpg", None),
    ]


def test_each_object_in_an_image_can_have_its_own_mask(tmp_path: Path) -> None:
    for name in ("a/images/a.png", "a/masks/1.png", "a/masks/2.png", "b/images/b.png"):
        write(tmp_path / "stage1" / name, encoded(MASK))
    names = {
        "image_names": "(.*)/images/[^/]+",
        "mask_names": "(.*)/masks/[^/]+",
        "images": "stage1",
        "masks": "stage1",
    }
    changes = {f"source__{key}": value for key, value in names.items()}
    samples, problems = found(tmp_path, source__mask_kind="instances", source__mask_threshold=5, **changes)
    both = Instances(("stage1/a/masks/1.png", "stage1/a/masks/2.png"), 5)
    assert [(sample.id, sample.mask) for sample in samples] == [("a", both), ("b", None)]
    assert not problems
    samples, [problem] = found(tmp_path, **changes)
    assert problem.found == "has 2 masks: stage1/a/masks/1.png, stage1/a/masks/2.png"


def test_params_decide_the_kind_of_mask(raw: Path) -> None:
    assert found(raw, source__mask_kind="colors")[0][0].mask == Colors("masks/a/1.png")
    assert found(raw, source__mask_kind="levels")[0][0].mask == Levels("masks/a/1.png", 128)


def test_splits_csv_defines_official_splits_and_groups(raw: Path) -> None:
    write(raw / "splits.csv", "\ufeffid,split,group\na/1,test,\na/2, test ,a\nb/deep/1.old,unlabeled,other\n")
    samples, _ = found(raw)
    assert [(sample.split, sample.group) for sample in samples] == [
        ("test", "a"),
        ("test", "a"),
        ("unlabeled", "other"),
    ]


def test_an_image_missing_from_splits_csv_has_no_official_split(raw: Path) -> None:
    write(raw / "splits.csv", "id,split\na/1,val\n")
    samples, _ = found(raw)
    assert [sample.split for sample in samples] == ["val", None, None]


def test_all_problems_with_splits_csv_are_reported_at_once(raw: Path) -> None:
    write(raw / "splits.csv", "id,split\na/1,train\na/1,train\nnowhere,val\na/2,holdout\n")
    with pytest.raises(UserError) as error:
        found(raw)
    reported = [(problem.where.rpartition("/")[2], problem.found) for problem in error.value.problems]
    assert reported == [
        ("splits.csv line 3", "id 'a/1' occurs twice"),
        ("splits.csv line 4", "id 'nowhere' has no image"),
        ("splits.csv line 5", "split 'holdout'"),
    ]


def test_splits_csv_can_name_a_refused_image(raw: Path) -> None:
    write(raw / "masks/a/1.tif", encoded(MASK, "TIFF"))
    write(raw / "splits.csv", "id,split\na/1,train\na/2,val\n")
    samples, [problem] = found(raw)
    assert [sample.split for sample in samples] == ["val", None]
    assert problem.where == "images/a/1.png"


@pytest.mark.parametrize("text", ["", "name,split\na/1,train\n", "id;split\na/1;train\n"])
def test_a_missing_column_in_splits_csv_is_reported(raw: Path, text: str) -> None:
    write(raw / "splits.csv", text)
    with pytest.raises(UserError, match="has no column"):
        found(raw)


def test_only_the_parentheses_of_a_pattern_capture_the_group(raw: Path) -> None:
    samples, _ = found(raw, group_pattern=r"(\w)/\w+")
    assert [sample.group for sample in samples] == ["a", "a", "b"]
