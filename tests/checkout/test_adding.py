"""`pspnet data add`: batches and imports, in real git and DVC repositories. e2e: the command starts DVC."""

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
from pspnet.checkout.batch import Batch, check_batch
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from tests.command import PSPNET, SETTINGS, pspnet
from tests.parameters import ROOT, demo_params
from tests.raw.rawdata import dataset_params, encoded, noise, shared_data, write
from tests.repository import commit, dvc, new_repository
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
        policies = demo_params(prepare__problems__mask_without_image=orphans).prepare.problems
        return check_batch(batch, raw, dataset_params(**{"group_pattern": "(.*)", **changes}), policies, name)

    def problems(self, batch: Path, raw: Path, name: str | None = None, **changes: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            self.check(batch, raw, name, **changes)
        return [str(problem) for problem in caught.value.problems]

    def test_a_batch_becomes_a_folder_in_the_images_and_in_the_masks(self, batch: Path, raw: Path) -> None:
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

    def test_images_may_come_before_their_masks(self, tmp_path: Path, raw: Path) -> None:
        write(tmp_path / "unlabeled/images/9.png", image())
        found = self.check(tmp_path / "unlabeled", raw)
        assert (found.images, found.masks) == (1, 0)
        write(tmp_path / "annotated/masks/1.png", MASK)
        found = self.check(tmp_path / "annotated", raw, "early")
        assert (found.images, found.masks, found.groups) == (0, 1, 1)
        assert [str(to) for to in found.files.values()] == ["masks/early/1.png"]

    def test_a_batch_may_keep_its_own_folders(self, batch: Path, raw: Path) -> None:
        write(batch / "classes.yaml", "classes: {a: 0}")
        found = self.check(batch, raw, ".")
        assert {str(to) for to in found.files.values()} == {"classes.yaml", "images/x.png", "masks/x.png"}

    @pytest.mark.parametrize(("images", "masks"), [(".", "."), (".", "masks"), ("in/images", "in")])
    def test_folders_may_have_other_names(self, tmp_path: Path, images: str, masks: str) -> None:
        write(tmp_path / f"b/{images}/x_i.png", image())
        write(tmp_path / f"b/{masks}/x_m.png", MASK)
        names = {"source__image_names": r"(.*)_i\.png", "source__mask_names": r"(.*)_m\.png"}
        found = self.check(tmp_path / "b", tmp_path / "raw", source__images=images, source__masks=masks, **names)
        assert {to.as_posix() for to in found.files.values()} == {
            Path(images, "b/x_i.png").as_posix(), Path(masks, "b/x_m.png").as_posix(),
        }  # fmt: skip
        assert (found.images, found.masks) == (1, 1)

    def test_other_layouts_keep_their_folders(self, tmp_path: Path) -> None:
        source = {"layout": "ade20k", "images": "images", "masks": "annotations"}
        write(tmp_path / "b/images/training/1.jpg", encoded(noise(2, 3), "JPEG"))
        write(tmp_path / "b/annotations/training/1.png", MASK)
        found = self.check(tmp_path / "b", tmp_path / "raw", source=source)
        assert [str(to) for to in found.files.values()] == ["annotations/training/1.png", "images/training/1.jpg"]
        [problem] = self.problems(tmp_path / "b", tmp_path / "raw", "may", source=source)
        assert problem == "--name may: names a folder, but layout ade20k has its own folders. Leave it out."

    def test_annotations_are_read_in_the_batch(self, tmp_path: Path) -> None:
        source = {"layout": "labelme", "images": ".", "annotations": r".*\.json", "line_width_px": 2}
        batch = shared_data("layouts") / "labelme_instances"
        found = self.check(batch, tmp_path / "raw", source=source)
        assert (found.images, found.masks, found.groups) == (3, 3, 3)
        assert {str(to) for to in found.files.values()} == files(batch)
        write(tmp_path / "broken/1.jpg", encoded(noise(2, 3), "JPEG"))
        write(tmp_path / "broken/1.json", "{")
        shutil.copytree(batch, tmp_path / "raw")
        [problem] = self.problems(tmp_path / "broken", tmp_path / "raw", source=source)
        assert problem.startswith(f"{tmp_path}/broken/1.json: ")

    @pytest.mark.parametrize("inside", [".", "images", "masks"])
    def test_an_archive_in_a_batch_counts_as_the_files_in_it(self, batch: Path, raw: Path, inside: str) -> None:
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
            f"{batch}/images/notes.txt: is not an image by its suffix",
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
        """The link's target would get into the data, the cache and the remote."""
        secret = write(tmp_path / "id_rsa", "PRIVATE KEY")
        (batch / "images/key.png").symlink_to(secret)
        (batch / "images/twice.png").symlink_to("key.png")
        (batch / "images/lost.png").symlink_to("../../nothing")
        assert self.problems(batch, raw) == [
            f"{batch}/images/{name}.png: is a link to {target}, outside the batch; "
            "expected files in the batch. Put the file itself there."
            for name, target in (("key", secret), ("lost", tmp_path / "nothing"), ("twice", secret))
        ]

    def test_a_link_within_the_batch_counts_as_its_target(self, batch: Path, raw: Path, tmp_path: Path) -> None:
        (batch / "images/same.png").symlink_to("x.png")
        (tmp_path / "linked").symlink_to(batch)
        for folder in (batch, tmp_path / "linked"):
            assert self.check(folder, raw).images == 2

    def test_an_existing_id_with_another_suffix_is_reported(self, tmp_path: Path, raw: Path) -> None:
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

    def test_an_image_without_a_group_is_reported(self, batch: Path, raw: Path) -> None:
        [problem] = self.problems(batch, raw, group_pattern="^(a|early|x)")
        assert problem.startswith(f"{batch}/images/x.png: id 'may/x' names no group")

    @pytest.mark.parametrize("name", ["", "..", "../x", "/x", ".hidden", "a//b", "a\nb", "x/", "./x"])
    def test_an_invalid_name_is_refused(self, batch: Path, raw: Path, name: str) -> None:
        [problem] = self.problems(batch, raw, name)
        assert "is not a valid folder name; expected a name such as 2024-05" in problem

    def test_a_path_that_is_not_a_batch_is_refused(self, batch: Path, raw: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        pipe, loop = batch / "images/pipe.png", batch / "images/loop.png"
        os.mkfifo(pipe)
        loop.symlink_to(loop)
        expected = "files in images and masks, as dataset.source names them"
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
    """A project with DVC and without data."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in (".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    write(folder / "params.yaml", (ROOT / "params.yaml").read_text().replace("^(street[0-9]+)", "(.*)"))
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
        "data/raw: added 2 images and 1 masks from 2 groups; data/raw.dvc is updated.\n"
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
def test_an_archive_is_added_unchanged(project: Path, may: Path) -> None:
    archive = Path(shutil.make_archive(str(may.parent / "june"), "zip", may))
    done = pspnet("data", "add", archive, cwd=project)
    assert done.stdout.startswith("data/raw: added 2 images and 1 masks from 2 groups;")
    assert files(project / "data/raw") == {"june.zip"}
    again = pspnet("data", "add", archive, "--name", "july", cwd=project)
    assert "has the same id as" in again.stderr
    assert files(project / "data/raw") == {"june.zip"}


@pytest.mark.e2e
def test_a_refused_batch_changes_nothing(project: Path, may: Path) -> None:
    write(may / "masks/alone.png", MASK)
    before = files(project)
    done = pspnet("data", "add", may, cwd=project)
    assert done.stderr.startswith(f"{may}/masks/alone.png: is a mask without an image")
    assert (done.stdout, done.returncode) == ("", 1)
    assert files(project) - {".pspnet/data-add.lock"} == before


@pytest.mark.e2e
def test_killed_while_copying_it_leaves_no_data_and_can_be_repeated(project: Path, may: Path) -> None:
    for number in range(1500):
        write(may / f"images/{number}.png", b"")
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
def test_killed_while_joining_it_is_finished_by_the_next_call(project: Path, may: Path) -> None:
    pair(project / "data/raw", "a")
    shutil.copytree(may / "masks", project / "data/raw/masks/may")
    shutil.copytree(may / "images", project / "data/raw.adding.partial/images/may")
    done = pspnet("data", "add", may, cwd=project)
    assert done.stdout == (
        "data/raw: finished adding the batch that was interrupted; data/raw.dvc is updated. "
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
        "data/raw: is missing, but data/raw.dvc names data. Run `dvc pull data/raw.dvc` first: "
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
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # DVC uses an old way to call pygtrie
def test_the_flow_updates_data_imported_from_a_repository(project: Path, origin: Path) -> None:
    new_repository(origin, f"    remote = folder\n['remote \"folder\"']\n    url = {origin.parent}/remote\n")
    released(origin)
    (project / "data/raw").mkdir(parents=True)  # empty: DVC would import into it
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
def test_a_failed_import_leaves_nothing(project: Path, origin: Path, tmp_path: Path) -> None:
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
def test_an_import_over_existing_data_is_refused_with_a_fix(project: Path) -> None:
    pair(project / "data/raw", "a")
    done = pspnet("data", "add", "--import-url", "s3://bucket/set", cwd=project)
    assert done.stderr == (
        "data/raw: already exists, and an import replaces all of it; expected no raw data. To replace it: "
        "`dvc remove data/raw.dvc`, then move data/raw away. To keep both: `dvc import` into another folder, then "
        "`pspnet data add` that folder; new data there must be added again.\n"
    )
    assert files(project / "data/raw") == {"images/a.png", "masks/a.png"}
