"""`pspnet data add`: batches and imports, in real git and DVC repositories. Tests in which the command starts DVC are
marked e2e.
"""

import os
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.logging import disable_run_logger

from flows.dag import Source, read_dag
from flows.sources import bring_up_to_date
from flows.workplace import Workplace
from pspnet.checkout.batch import Addition, Batch, check_batch
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from pspnet.raw import pieces, workers
from tests.command import PSPNET, SETTINGS, pspnet
from tests.parameters import ROOT
from tests.raw.rawdata import dataset_params, encoded, noise, prepare_params, shared_data, write
from tests.repository import commit, dvc, git, new_repository
from tests.training.conftest import quiet
from tests.waiting import wait_until

MASK = encoded(np.zeros((2, 3), np.uint8))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def image(seed: int = 0) -> bytes:
    return encoded(noise(2, 3, seed))


def pair(folder: Path, name: str) -> None:
    write(folder / f"images/{name}.png", image(len(name)))
    write(folder / f"masks/{name}.png", MASK)


class TestCheckBatch:
    @pytest.fixture
    def raw(self, tmp_path: Path) -> Path:
        pair(tmp_path / "raw", "a")
        write(tmp_path / "raw/images/early/1.png", image())
        return tmp_path / "raw"

    @pytest.fixture
    def batch(self, tmp_path: Path) -> Path:
        pair(tmp_path / "may", "x")
        return tmp_path / "may"

    def check(self, batch: Path, raw: Path, name: str | None = None, orphans: str = "error", **changes: Any) -> Batch:
        policies = {key: changes.pop(key) for key in [*changes] if key.startswith("problems__")}
        prepare = prepare_params(problems__mask_without_image=orphans, **policies)
        dataset = dataset_params(**{"group_pattern": "(.*)", **changes})
        return check_batch(Addition(batch, raw, dataset, prepare, name, raw.with_name("state"), quiet))

    def problems(self, batch: Path, raw: Path, name: str | None = None, **changes: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            self.check(batch, raw, name, **changes)
        return [str(problem) for problem in caught.value.problems]

    def test_a_batch_becomes_a_folder_in_both_images_and_masks(self, batch: Path, raw: Path) -> None:
        write(batch / "images/sub/2.jpg", encoded(noise(2, 3), "JPEG"))
        write(batch / "images/.DS_Store", "")
        write(batch / "Thumbs.db", "")
        found = self.check(batch, raw)
        assert {str(path.relative_to(batch)): str(to) for path, to in found.files.items()} == {
            "images/sub/2.jpg": "images/may/sub/2.jpg",
            "images/x.png": "images/may/x.png",
            "masks/x.png": "masks/may/x.png",
        }
        assert (found.images, found.masks, found.groups) == (2, 1, 2)

    def test_the_first_batch_needs_no_raw_data(self, batch: Path, tmp_path: Path) -> None:
        assert self.check(batch, tmp_path / "nothing").images == 1

    def test_the_very_first_batch_needs_images_and_masks(self, tmp_path: Path) -> None:
        write(tmp_path / "b/images/1.png", image())
        [problem] = self.problems(tmp_path / "b", tmp_path / "raw")
        assert problem.startswith(
            f"{tmp_path}/raw/masks: is missing; expected the folder given in dataset.source.masks"
        )

    def test_the_classes_must_be_named_first(self, batch: Path, raw: Path) -> None:
        [problem] = self.problems(batch, raw, classes={}, ignore_values=[])
        assert problem.startswith(f"{raw}/classes.yaml: is missing, and dataset.classes in params.yaml is {{}}")
        write(raw / "classes.yaml", "classes: {back: 0, front: 1}")
        assert self.check(batch, raw, classes={}, ignore_values=[]).masks == 1

    def test_problems_that_concern_the_whole_set_are_left_to_prepare(self, batch: Path, tmp_path: Path) -> None:
        """In this batch, a single group cannot fill three splits, and no mask shows the class `front`. Only `prepare`
        reports that.
        """
        policies = {"problems__absent_class": "error", "problems__near_duplicate": "error"}
        assert self.check(batch, tmp_path / "nothing", **policies).groups == 1

    def test_images_can_be_added_before_their_masks(self, tmp_path: Path, raw: Path) -> None:
        write(tmp_path / "unlabeled/images/9.png", image())
        found = self.check(tmp_path / "unlabeled", raw)
        assert (found.images, found.masks) == (1, 0)
        write(tmp_path / "annotated/masks/1.png", MASK)
        found = self.check(tmp_path / "annotated", raw, "early")
        assert (found.images, found.masks, found.groups) == (0, 1, 1)
        assert [str(to) for to in found.files.values()] == ["masks/early/1.png"]

    def test_a_batch_can_keep_its_own_folders(self, batch: Path, raw: Path) -> None:
        write(batch / "classes.yaml", "classes: {back: 0, front: 1}")
        write(batch / "splits.csv", "id,split\nx,test\n")
        found = self.check(batch, raw, ".", classes={}, ignore_values=[])
        assert {str(to) for to in found.files.values()} == {
            "classes.yaml", "images/x.png", "masks/x.png", "splits.csv",
        }  # fmt: skip

    def test_the_classes_and_splits_in_a_batch_are_checked(self, batch: Path, raw: Path) -> None:
        write(batch / "splits.csv", "id,split\ny,test\n")
        [problem] = self.problems(batch, raw, ".")
        assert problem.startswith(f"{batch}/splits.csv line 2: id 'y' has no image")
        write(batch / "classes.yaml", "classes: {back: 0}")
        [problem] = self.problems(batch, raw, ".", classes={}, ignore_values=[])
        assert problem.startswith(f"{batch}/classes.yaml: names only one class, back; expected at least two.")

    @pytest.mark.parametrize(("images", "masks"), [(".", "."), (".", "masks"), ("in/images", "in")])
    def test_folders_can_have_other_names(self, tmp_path: Path, images: str, masks: str) -> None:
        write(tmp_path / f"b/{images}/x_i.png", image())
        write(tmp_path / f"b/{masks}/x_m.png", MASK)
        names = {"source__image_names": r"(.*)_i\.png", "source__mask_names": r"(.*)_m\.png"}
        found = self.check(tmp_path / "b", tmp_path / "raw", source__images=images, source__masks=masks, **names)
        assert {to.as_posix() for to in found.files.values()} == {
            Path(images, "b/x_i.png").as_posix(), Path(masks, "b/x_m.png").as_posix(),
        }  # fmt: skip
        assert (found.images, found.masks) == (1, 1)

    def test_batches_in_other_layouts_keep_their_folders(self, tmp_path: Path) -> None:
        source = {"layout": "ade20k", "images": "images", "masks": "annotations"}
        write(tmp_path / "b/images/training/1.jpg", encoded(noise(2, 3), "JPEG"))
        write(tmp_path / "b/annotations/training/1.png", MASK)
        found = self.check(tmp_path / "b", tmp_path / "raw", source=source)
        assert [str(to) for to in found.files.values()] == ["annotations/training/1.png", "images/training/1.jpg"]
        [problem] = self.problems(tmp_path / "b", tmp_path / "raw", "may", source=source)
        assert problem == "--name may: gives a folder name, but layout ade20k has its own folders. Leave it out."

    def test_annotations_in_the_batch_are_read(self, tmp_path: Path) -> None:
        source = {"layout": "labelme", "images": ".", "annotations": r".*\.json", "line_width_px": 2}
        own: dict[str, Any] = {"source": source, "classes": {}, "ignore_values": []}
        batch = shared_data("layouts") / "labelme_instances"
        found = self.check(batch, tmp_path / "raw", **own)
        assert (found.images, found.masks, found.groups) == (3, 3, 3)
        assert {str(to) for to in found.files.values()} == files(batch)
        write(tmp_path / "broken/1.jpg", encoded(noise(2, 3), "JPEG"))
        write(tmp_path / "broken/1.json", "{")
        shutil.copytree(batch, tmp_path / "raw")
        [problem] = self.problems(tmp_path / "broken", tmp_path / "raw", **own)
        assert problem.startswith(f"{tmp_path}/broken/1.json: ")

    @pytest.mark.parametrize("inside", [".", "images", "masks"])
    def test_an_archive_in_a_batch_is_treated_as_the_files_inside_it(self, batch: Path, raw: Path, inside: str) -> None:
        with zipfile.ZipFile(batch / inside / "more.zip", "w") as archive:
            prefix = "images/" if inside == "." else ""
            archive.writestr(f"{prefix}{'x' if inside == 'masks' else 'z'}.png", MASK)
        if inside == "images":
            assert self.check(batch, raw).images == 2
        elif inside == "masks":
            assert "has 2 masks: masks/may/more.zip/x.png, masks/may/x.png" in self.problems(batch, raw)[0]
        else:
            assert "more.zip: would not be found by `prepare`" in self.problems(batch, raw)[0]

    def test_all_problems_are_reported_with_paths_in_the_batch(self, batch: Path, raw: Path) -> None:
        write(batch / "masks/alone.png", MASK)
        write(batch / "images/notes.txt", "text")
        assert [problem.partition("; ")[0] for problem in self.problems(batch, raw)] == [
            f"{batch}/images/notes.txt: does not have the suffix of an image",
            f"{batch}/masks/alone.png: is a mask without an image",
        ]

    def test_existing_files_are_not_overwritten(self, batch: Path, raw: Path) -> None:
        pair(batch, "a")
        assert self.check(batch, raw).images == 2
        taken = ["images/a.png", "masks/a.png"]
        assert self.problems(batch, raw, ".") == [
            f"{batch}/{name}: would become {raw}/{name}, which already exists; expected an unused name. "
            "Rename it, or give the batch another name (--name)."
            for name in taken
        ]

    def test_a_link_out_of_the_batch_is_refused(self, batch: Path, raw: Path, tmp_path: Path) -> None:
        """Otherwise, the target of the link would end up in the data, the cache and the remote."""
        secret = write(tmp_path / "id_rsa", "PRIVATE KEY")
        (batch / "images/key.png").symlink_to(secret)
        (batch / "images/twice.png").symlink_to("key.png")
        (batch / "images/lost.png").symlink_to("../../nothing")
        assert self.problems(batch, raw) == [
            f"{batch}/images/{name}.png: is a link to {target}, outside the batch; "
            "expected files in the batch. Put the file itself there."
            for name, target in (("key", secret), ("lost", tmp_path / "nothing"), ("twice", secret))
        ]

    def test_a_link_within_the_batch_is_treated_as_its_target(self, batch: Path, raw: Path, tmp_path: Path) -> None:
        (batch / "images/same.png").symlink_to("x.png")
        (tmp_path / "linked").symlink_to(batch)
        for folder in (batch, tmp_path / "linked"):
            assert self.check(folder, raw).images == 2

    def test_an_existing_id_with_a_different_suffix_is_reported(self, tmp_path: Path, raw: Path) -> None:
        write(tmp_path / "b/images/a.jpg", encoded(noise(2, 3), "JPEG"))
        [problem] = self.problems(tmp_path / "b", raw, ".")
        assert problem.startswith(f"{tmp_path}/b/images/a.jpg: has the same id as images/a.png")

    def test_problems_with_existing_data_do_not_block_the_batch(self, batch: Path, raw: Path) -> None:
        write(raw / "masks/alone.png", MASK)
        assert self.check(batch, raw).images == 1

    @pytest.mark.parametrize("policy", ["error", "quarantine", "allow"])
    def test_problems_that_a_policy_allows_are_allowed(self, batch: Path, raw: Path, policy: str) -> None:
        write(batch / "masks/alone.png", MASK)
        if policy == "allow":
            assert len(self.check(batch, raw, orphans=policy).files) == 3
        else:
            assert len(self.problems(batch, raw, orphans=policy)) == 1

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("images/x.png", b"", "images/x.png: is empty (0 bytes); expected an image. Copy or export it again"),
            ("images/x.png", image()[:60], "images/x.png: cannot be decoded"),
            ("masks/x.png", b"words", "masks/x.png: cannot be recognized as an image"),
            ("masks/x.png", encoded(np.full((2, 3), 7, np.uint8)), "masks/x.png: has value 7 in 6 pixels (100.0%)"),
            (
                "masks/x.png",
                encoded(np.zeros((3, 3), np.uint8)),
                "masks/x.png: has 3 x 3 pixels, but its image images/may/",
            ),
            ("images/x.png", encoded(noise(2, 3), "JPEG"), "images/x.png: is actually a JPEG"),
        ],
        ids=["empty image", "cut-off image", "broken mask", "unknown value", "mask of another size", "wrong suffix"],
    )
    def test_what_prepare_would_refuse_in_a_file_is_reported(
        self, batch: Path, raw: Path, name: str, content: bytes, message: str
    ) -> None:
        write(batch / name, content)
        [problem] = self.problems(batch, raw, problems__wrong_suffix="quarantine")
        assert problem.startswith(f"{batch}/{message}")
        packed = Path(shutil.make_archive(str(raw.with_name("june")), "zip", batch))
        [problem] = self.problems(packed, raw, problems__wrong_suffix="quarantine")
        assert problem.startswith(f"{packed}/{message.replace('images/may', 'june.zip/images')}")

    def test_files_that_a_policy_fixes_or_allows_are_added(self, batch: Path, raw: Path) -> None:
        write(batch / "images/x.png", encoded(noise(2, 3), "JPEG"))
        write(batch / "masks/x.png", encoded(np.array([[7, 0, 1]] * 2, np.uint8)))
        assert self.check(batch, raw, problems__mask_values="fix").masks == 1

    def test_the_refusal_names_the_policies_that_would_help_and_lists_the_problems(
        self, batch: Path, raw: Path
    ) -> None:
        for number in range(30):
            write(batch / f"images/{number:02d}.png", b"")
        write(batch / "masks/x.png", encoded(np.full((2, 3), 7, np.uint8)))
        with pytest.raises(UserError) as caught:
            self.check(batch, raw)
        lines = str(caught.value).splitlines()
        listing = raw.with_name("state") / "data-add.csv"
        assert lines[0] == "31 problems:"
        assert lines[-4:] == [
            "Nothing was added.",
            "To add the batch without repairing it, choose in params.yaml:",
            "  prepare.problems.mask_values: fix  # for 1 problem",
            f"{listing} lists 31 problems.",
        ]
        assert listing.read_text().count(f"{batch}/images/") == 30
        assert not (raw.with_name("state") / "data-add").exists()

    def test_files_that_prepare_would_not_find_are_reported_with_the_others(self, batch: Path, raw: Path) -> None:
        write(batch / "notes.txt", "words")
        write(batch / "images/x.png", b"")
        stray, empty = self.problems(batch, raw)
        assert stray.startswith(
            f"{batch}/notes.txt: would not be found by `prepare`; expected files in images and mask"
        )
        assert empty.startswith(f"{batch}/images/x.png: is empty (0 bytes)")

    @pytest.mark.e2e
    def test_a_large_batch_is_checked_by_several_processes(
        self, batch: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(6):
            pair(batch, f"{number}")
        write(batch / "images/3.png", b"")
        monkeypatch.setattr(pieces, "PIECE", 2)
        monkeypatch.setattr(workers, "PROCESS_BYTES", 1)
        monkeypatch.setenv("PSPNET_PREPARE_PROCESSES", "2")
        for sent in (batch, Path(shutil.make_archive(str(raw.with_name("june")), "zip", batch))):
            [problem] = self.problems(sent, raw)
            assert problem.startswith(f"{sent}/images/3.png: is empty (0 bytes)")

    def test_problems_with_an_existing_image_do_not_block_its_mask(self, tmp_path: Path, raw: Path) -> None:
        write(raw / "images/early/1.png", b"")
        write(tmp_path / "masks_only/masks/1.png", MASK)
        assert self.check(tmp_path / "masks_only", raw, "early").masks == 1

    @pytest.mark.parametrize("there", [True, False])
    @pytest.mark.parametrize("kind", ["png", "zip"])
    def test_an_equal_image_with_another_mask_is_reported(self, batch: Path, raw: Path, there: bool, kind: str) -> None:
        home = raw if there else batch
        write(home / "images/sub/same.png", (batch / "images/x.png").read_bytes())
        write(home / "masks/sub/same.png", encoded(np.ones((2, 3), np.uint8)))
        sent = Path(shutil.make_archive(str(raw.with_name("may2")), "zip", batch)) if kind == "zip" else batch
        problems = self.problems(sent, raw)
        assert len(problems) == (1 if there else 2)
        assert f"{sent}/images/x.png: is the same image as " in problems[0 if there else 1]
        assert "but their masks differ" in problems[0]
        assert self.check(sent, raw, problems__differing_masks="allow").duplicates == (1 if there else 2)

    @pytest.mark.parametrize("policy", ["error", "quarantine"])
    def test_copies_are_counted_or_reported_if_they_would_stop_prepare(
        self, batch: Path, raw: Path, policy: str
    ) -> None:
        write(raw / "images/same.png", (batch / "images/x.png").read_bytes())
        write(batch / "images/y.png", (batch / "images/x.png").read_bytes())
        write(raw / "images/other.png", image(7))
        if policy == "quarantine":
            assert self.check(batch, raw).duplicates == 2
            return
        found = "is the same image as images/a.png (already there)"
        assert [problem.partition("; ")[0] for problem in self.problems(batch, raw, problems__duplicate=policy)] == [
            f"{batch}/images/x.png: {found}",
            f"{batch}/images/y.png: {found}",
        ]

    def test_a_group_that_the_batch_puts_into_two_splits_is_reported(self, tmp_path: Path) -> None:
        source = {"layout": "ade20k", "images": "images", "masks": "annotations"}
        own: dict[str, Any] = {"source": source, "classes": {}, "ignore_values": [], "group_pattern": r"(\d+)"}
        for folder, split, number in (("raw", "training", 1), ("b", "validation", 1), ("b", "training", 2)):
            write(tmp_path / f"{folder}/images/{split}/{number}.jpg", encoded(noise(2, 3, number), "JPEG"))
            write(tmp_path / f"{folder}/annotations/{split}/{number}.png", encoded(np.ones((2, 3), np.uint8)))
        [problem] = self.problems(tmp_path / "b", tmp_path / "raw", **own)
        assert problem.startswith("group '1': has two splits: train (training/1), val (validation/1)")

    def test_an_image_without_a_group_is_reported(self, batch: Path, raw: Path) -> None:
        [problem] = self.problems(batch, raw, group_pattern="^(a|early|x)")
        assert problem.startswith(f"{batch}/images/x.png: has id 'may/x', which contains no group")
        assert self.check(batch, raw, group_pattern="(a|early|x)").groups == 1

    @pytest.mark.parametrize("name", ["", "..", "../x", "/x", ".hidden", "a//b", "a\nb", "x/", "./x"])
    def test_an_invalid_name_is_refused(self, batch: Path, raw: Path, name: str) -> None:
        [problem] = self.problems(batch, raw, name)
        assert "is not a valid folder name; expected a name such as 2024-05" in problem

    def test_a_path_that_is_not_a_batch_is_refused(self, batch: Path, raw: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        pipe, loop = batch / "images/pipe.png", batch / "images/loop.png"
        os.mkfifo(pipe)
        loop.symlink_to(loop)
        expected = "files in images and masks, as set in dataset.source"
        assert self.problems(tmp_path / "empty", raw) == [
            f"{tmp_path}/empty: adds neither an image nor a mask; expected {expected}"
        ]
        assert [problem.partition(";")[0] for problem in self.problems(batch, raw)] == [
            f"{path}: is a broken link or not a regular file" for path in (loop, pipe)
        ]
        assert self.problems(batch / "images/x.png", raw)[0].endswith("is a file; expected a folder, .zip or .tar")
        assert self.problems(tmp_path / "no", raw)[0].endswith("is missing; expected a folder, .zip or .tar")
        assert "overlaps" in self.problems(raw / "images", raw)[0]
        assert "overlaps" in self.problems(tmp_path, raw)[0]
        write(tmp_path / "broken.zip", "PK")
        assert self.problems(tmp_path / "broken.zip", raw)[0].startswith(
            f"{tmp_path}/broken.zip: cannot be opened as an archive"
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with DVC but no data."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in (".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    params = (ROOT / "params.yaml").read_text().replace("^(street[0-9]+)", "(.*)")
    write(folder / "params.yaml", params.replace("  classes: {} ", "  classes: {back: 0, front: 1} "))
    new_repository(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def may(tmp_path: Path) -> Path:
    pair(tmp_path / "may", "x")
    write(tmp_path / "may/images/y.png", image())
    return tmp_path / "may"


ADDED = {"images/may/x.png", "images/may/y.png", "masks/may/x.png"}


@pytest.mark.e2e
def test_a_batch_is_added_and_tracked_by_dvc(project: Path, may: Path) -> None:
    pair(project / "data/raw", "a")
    done = pspnet("data", "add", may, cwd=project)
    assert done.stdout == (
        "data/raw: added 2 images and 1 mask from 2 groups; data/raw.dvc is updated.\n"
        "Copies of other images: 1; `prepare` keeps one of each.\n"
        "Next: git add data/raw.dvc && git commit, then make retrain\n"
    )
    assert done.returncode == 0
    assert files(project / "data/raw") == ADDED | {"images/a.png", "masks/a.png"}
    assert read_yaml(project / "data/raw.dvc")["outs"][0]["nfiles"] == 5
    assert files(may) == {"images/x.png", "images/y.png", "masks/x.png"}
    assert {path.name for path in (project / "data").iterdir()} == {"raw", "raw.dvc"}
    assert (project / "data/raw/images/may/x.png").read_bytes() == (may / "images/x.png").read_bytes()
    again = pspnet("data", "add", may, cwd=project)
    assert again.stderr.count("which already exists") == 3
    assert again.returncode == 1


@pytest.mark.e2e
def test_moving_a_batch_leaves_only_files_that_were_not_added(project: Path, may: Path) -> None:
    write(may / ".notes", "mine")
    (may / "images/empty").mkdir()
    done = pspnet("data", "add", may, "--move", "--name", "2024/june", cwd=project)
    assert done.returncode == 0, done.stderr
    assert files(project / "data/raw") == {name.replace("may", "2024/june") for name in ADDED}
    assert [path.name for path in may.iterdir()] == [".notes"]


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_added_unchanged(project: Path, may: Path, kind: str) -> None:
    archive = Path(shutil.make_archive(str(may.parent / "june"), kind, may))
    done = pspnet("data", "add", archive, cwd=project)
    assert done.stdout.startswith("data/raw: added 2 images and 1 mask from 2 groups;")
    assert files(project / "data/raw") == {archive.name}
    again = pspnet("data", "add", archive, "--name", "july", cwd=project)
    assert "has the same id as" in again.stderr
    assert files(project / "data/raw") == {archive.name}


@pytest.mark.e2e
def test_a_refused_batch_changes_nothing(project: Path, may: Path) -> None:
    write(may / "masks/alone.png", MASK)
    before = files(project)
    done = pspnet("data", "add", may, cwd=project)
    assert done.stderr.startswith(f"{may}/masks/alone.png: is a mask without an image")
    assert (done.stdout, done.returncode) == ("", 1)
    assert files(project) - {".pspnet/data-add.lock"} == before


@pytest.mark.e2e
def test_a_kill_while_copying_leaves_no_data_and_the_command_can_be_repeated(project: Path, may: Path) -> None:
    for number in range(1500):
        write(may / f"images/{number}.png", MASK)
    words = [PSPNET, "data", "add", str(may)]
    process = subprocess.Popen(
        words, cwd=project, env=os.environ | SETTINGS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    copies = project / "data/raw.adding.partial.partial/images/may"
    wait_until(lambda: process.poll() is not None or (copies.exists() and any(copies.iterdir())), pause=0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len([*copies.iterdir()]) < 1502
    assert not (project / "data/raw").exists()
    assert len(files(may)) == 1503
    done = pspnet(*words[1:], "--move", cwd=project)
    assert done.returncode == 0, done.stderr
    assert len(files(project / "data/raw")) == 1503
    assert {path.name for path in (project / "data").iterdir()} == {"raw", "raw.dvc"}
    assert not may.exists()


@pytest.mark.e2e
def test_a_batch_whose_command_was_killed_is_finished_by_the_next_call(project: Path, may: Path) -> None:
    pair(project / "data/raw", "a")
    shutil.copytree(may / "masks", project / "data/raw/masks/may")
    shutil.copytree(may / "images", project / "data/raw.adding.partial/images/may")
    done = pspnet("data", "add", may, cwd=project)
    assert done.stdout == (
        "data/raw: finished adding the interrupted batch; data/raw.dvc is updated. "
        f"If that was not {may}, add it now.\n"
    )
    assert done.returncode == 0
    assert files(project / "data/raw") == ADDED | {"images/a.png", "masks/a.png"}
    assert read_yaml(project / "data/raw.dvc")["outs"][0]["nfiles"] == 5
    assert {path.name for path in (project / "data").iterdir()} == {"raw", "raw.dvc"}


@pytest.mark.e2e
def test_a_batch_is_refused_while_the_tracked_data_is_missing(project: Path, may: Path) -> None:
    write(project / "data/raw.dvc", "outs:\n- md5: 4f45a724a8b178a4df0c785c80b3d1b6.dir\n  path: raw\n")
    done = pspnet("data", "add", may, cwd=project)
    assert done.stderr == (
        "data/raw: is missing, but data/raw.dvc lists data. Run `dvc pull data/raw.dvc` first: "
        "otherwise the batch would replace that data.\n"
    )
    assert not (project / "data/raw").exists()


@pytest.mark.parametrize(
    "words",
    [
        [], ["x", "--import-url", "y"], ["--import", "a"], ["x", "--rev", "main"], ["--import-url", "y", "--move"],
    ],
)  # fmt: skip
def test_contradictory_options_exit_with_2(project: Path, words: list[str]) -> None:
    done = pspnet("data", "add", *words, cwd=project)
    assert (done.stdout, done.returncode) == ("", 2)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    pair(tmp_path / "origin/set", "a")
    return tmp_path / "origin"


def released(origin: Path) -> None:
    dvc("add", "--quiet", "set", cwd=origin)
    dvc("push", "--quiet", cwd=origin)
    commit(origin, "released")


def pairs(names: str) -> set[str]:
    return {f"{kind}/{name}.png" for kind in ("images", "masks") for name in names}


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC uses pygtrie in a deprecated way
def test_the_flow_updates_data_imported_from_a_repository(project: Path, origin: Path) -> None:
    new_repository(origin, f"    remote = folder\n['remote \"folder\"']\n    url = {origin.parent}/remote\n")
    released(origin)
    (project / "data/raw").mkdir(parents=True)  # an empty folder is fine too, although DVC alone would import into it
    done = pspnet("data", "add", "--import", origin, "set", cwd=project)
    assert done.stdout.startswith(f"data/raw: imported from set of {origin}, as recorded in data/raw.dvc.\n")
    assert (files(project / "data/raw"), done.returncode) == (pairs("a"), 0)
    assert {path.name for path in (project / "data").iterdir()} == {"raw", "raw.dvc"}
    [source] = read_dag(project).sources
    assert source == Source("data/raw", is_import=True)
    pair(origin / "set", "b")
    released(origin)
    place = Workplace(project, project)
    with disable_run_logger():
        assert bring_up_to_date(place, source, place.environment(), None, has_remote=False) is None
    assert files(project / "data/raw") == pairs("ab")
    refused = pspnet("data", "add", origin / "set", cwd=project)
    assert refused.stderr.startswith("data/raw: was imported: an update would remove files added here.")
    assert (refused.returncode, files(project / "data/raw")) == (1, pairs("ab"))


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_a_branch_of_a_repository_is_imported(project: Path, origin: Path) -> None:
    new_repository(origin, f"    remote = folder\n['remote \"folder\"']\n    url = {origin.parent}/remote\n")
    released(origin)
    git("checkout", "--quiet", "-b", "labeled", cwd=origin)
    pair(origin / "set", "b")
    released(origin)
    git("checkout", "--quiet", "-", cwd=origin)
    done = pspnet("data", "add", "--import", origin, "set", "--rev", "labeled", cwd=project)
    assert (done.returncode, files(project / "data/raw")) == (0, pairs("ab")), done.stderr


@pytest.mark.e2e
def test_dvc_update_refreshes_data_imported_from_an_address(project: Path, origin: Path) -> None:
    write(project / "data/raw.importing.partial/images/half.png", "left by a killed import")
    done = pspnet("data", "add", "--import-url", origin / "set", cwd=project)
    assert done.stdout.startswith(f"data/raw: imported from {origin}/set, as recorded in data/raw.dvc.\n")
    assert (files(project / "data/raw"), done.returncode) == (pairs("a"), 0)
    assert {path.name for path in (project / "data").iterdir()} == {"raw", "raw.dvc"}
    pair(origin / "set", "b")
    dvc("update", "data/raw.dvc", cwd=project)
    assert files(project / "data/raw") == pairs("ab")


@pytest.mark.e2e
def test_a_failed_import_leaves_nothing_behind(project: Path, origin: Path, tmp_path: Path) -> None:
    before = files(project)
    for words, message in (
        (["--import-url", str(tmp_path / "nothing")], "failed. See DVC's message above."),
        (["--import-url", str(origin / "set/images/a.png")], "a.png: is a file; expected a folder. Put a .zip or .tar"),
    ):
        done = pspnet("data", "add", *words, cwd=project)
        assert "stage working dir" not in done.stderr
        assert message in done.stderr.splitlines()[-1]
        assert (done.stdout, done.returncode) == ("", 1)
        assert {name for name in files(project) - before if not name.startswith((".dvc", ".pspnet"))} == set()


@pytest.mark.e2e
def test_an_import_over_existing_data_is_refused_and_the_fix_is_named(project: Path) -> None:
    pair(project / "data/raw", "a")
    done = pspnet("data", "add", "--import-url", "s3://bucket/set", cwd=project)
    assert done.stderr == (
        "data/raw: already exists, and an import replaces all of it; expected no raw data. To replace it: "
        "`dvc remove data/raw.dvc`, then move data/raw away. To keep both: `dvc import` into another folder, then "
        "`pspnet data add` that folder; new data there must be added again.\n"
    )
    assert files(project / "data/raw") == {"images/a.png", "masks/a.png"}
