"""`pspnet data diff` in a real git and DVC repository, with the project in a subfolder."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.command import pspnet
from tests.files import made_once
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise, write
from tests.repository import commit, dvc, git, new_repository

DVC_YAML = """\
stages:
  prepare:
    cmd: pspnet prepare --raw data/raw --out data/prepared
    outs: [data/prepared]
"""
LOG = "`git log dvc.lock` shows the revisions that have one. Commit it after a run: git add dvc.lock\n"
REMOTE = """\
    remote = folder
['remote "folder"']
    url = ../../../remote
"""
MASK = np.zeros((2, 4), np.uint8)
MASK[0] = 1
OTHER = np.array([[0, 1, 1, 1]] * 2, np.uint8)


@pytest.fixture(scope="session")
def made(shared: Path) -> Path:
    return made_once(shared / "data-diff", make)


def make(folder: Path) -> None:
    """Create the repository. The first commit has four images and three masks. Since then, e was added, d was removed,
    b got a different mask, and c moved to train. An empty image and a copy of e were left out.
    """
    repository, project = folder / "repository", folder / "repository/project"
    write(project / "dvc.yaml", DVC_YAML)
    params = (ROOT / "params.yaml").read_text()
    write(project / "params.yaml", params.replace("^(street[0-9]+)", "(.*)").replace("share: 0.01", "share: 0.2"))
    write(project / ".gitignore", "/data/raw/\n/data/prepared/\n")
    write(project / "data/raw/classes.yaml", "classes: {back: 0, front: 1}\n")
    for number, name in enumerate("abcd"):
        write(project / f"data/raw/images/{name}.png", encoded(noise(2, 4, number)))
    for name in "abc":
        write(project / f"data/raw/masks/{name}.png", encoded(MASK))
    write(project / "data/raw/splits.csv", "id,split,group\na,train,a\nb,val,b\nc,test,c\nd,train,d\n")
    git("init", "--quiet", cwd=repository)
    new_repository(project, REMOTE)
    commit(repository, "before anything ran")
    prepare(project)
    dvc("commit", "--quiet", "--force", cwd=project)
    dvc("push", "--quiet", cwd=project)
    commit(repository, "prepared")
    write(project / "data/raw/images/e.png", encoded(noise(2, 4, 9)))
    write(project / "data/raw/masks/e.png", encoded(MASK))
    write(project / "data/raw/masks/b.png", encoded(OTHER))
    write(project / "data/raw/images/f.png", b"")
    shutil.copyfile(project / "data/raw/images/e.png", project / "data/raw/images/g.png")
    (project / "data/raw/images/d.png").unlink()
    write(project / "data/raw/splits.csv", "id,split,group\na,test,a\nb,val,b\nc,train,c\ne,train,e\n")
    prepare(project)


def prepare(project: Path) -> None:
    done = pspnet("prepare", "--raw", "data/raw", "--out", "data/prepared", cwd=project)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path / "repository/project"


def test_diff_prints_the_changes_since_the_last_commit(project: Path) -> None:
    done = pspnet("data", "diff", cwd=project)
    assert (done.stderr, done.returncode) == ("", 0)
    head = git("rev-parse", "HEAD", cwd=project)[:7]
    lines = [
        " ".join(re.sub("[│┃]", " ", line).split()) for line in done.stdout.splitlines() if not re.search("[─━]", line)
    ]
    assert lines == [
        f"data/prepared against HEAD ({head})",
        "before added removed changed now",
        "images 4 1 1 0 4",
        "masks 3 1 0 1 4",
        "quarantined 0 1 0 0 1",
        "duplicates 0 1 0 0 1",
        "images added (1): e",
        "images removed (1): d",
        "moved to another split (2): a (train -> test), c (test -> train)",
        "masks added (1): e",
        "masks changed (1): b",
        "newly quarantined (1): images/f.png (unreadable)",
        "new duplicates (1): images/g.png (duplicate)",
        "",
        "class pixels before now difference gained lost",
        "back 12 14 +2 1 3",
        "front 12 18 +6 3 1",
        "gained and lost count only changed masks; the difference also includes added and removed masks",
    ]


def test_diff_as_json_has_all_changes(project: Path) -> None:
    done = pspnet("data", "diff", "HEAD", "--json", "--limit", "0", cwd=project)
    told = json.loads(done.stdout)
    assert told["revision"] == git("rev-parse", "HEAD", cwd=project).strip()
    assert told["images"] == {"before": 4, "now": 4, "added": ["e"], "removed": ["d"], "changed": []}
    assert told["masks"] == {"before": 3, "now": 4, "added": ["e"], "removed": [], "changed": ["b"]}
    assert told["quarantined"] == {
        "before": 0, "now": 1, "added": ["images/f.png (unreadable)"], "removed": [], "changed": [],
    }  # fmt: skip
    assert told["moved"] == [["a", "train", "test"], ["c", "test", "train"]]


def test_a_limit_shortens_the_lists(project: Path) -> None:
    done = pspnet("data", "diff", "--limit", "1", cwd=project)
    assert "moved to another split (2): a (train -> test), and 1 more\n" in done.stdout


def test_files_missing_from_the_dvc_cache_are_fetched_from_the_remote(project: Path) -> None:
    expected = pspnet("data", "diff", cwd=project).stdout
    shutil.rmtree(project / ".dvc/cache")
    done = pspnet("data", "diff", cwd=project)
    assert (done.stdout, done.returncode) == (expected, 0)
    assert "4 of 4 files from DVC's remote\n" in done.stderr


@pytest.mark.parametrize("remote", [True, False])
def test_files_missing_everywhere_are_reported(project: Path, remote: bool) -> None:
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(project.parents[1] / "remote")
    if not remote:
        dvc("remote", "remove", "folder", cwd=project)
    done = pspnet("data", "diff", cwd=project)
    assert done.stderr.splitlines()[-1] == (
        "data/prepared of HEAD: lacks 1 of its files in this checkout's DVC cache and in its remote. "
        "Run `dvc push` where the set was created."
    )
    assert (done.stdout, done.returncode) == ("", 1)


def test_nothing_has_changed_right_after_a_commit(project: Path) -> None:
    dvc("commit", "--quiet", "--force", cwd=project)
    commit(project, "again")
    done = pspnet("data", "diff", cwd=project)
    assert done.stdout.endswith("): nothing has changed.\n")
    assert "images 4 1 1 0 4" in " ".join(
        pspnet("data", "diff", "HEAD~1", cwd=project).stdout.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    ("rev", "message"),
    [
        ("nothing", "'nothing': is not a revision in this repository; expected a commit, branch or tag\n"),
        ("--help-me", "'--help-me': is not a revision in this repository; expected a commit, branch or tag\n"),
        ("HEAD~1", "dvc.lock of HEAD~1: is missing; expected the record of a run. " + LOG),
    ],
)
def test_a_revision_without_a_prepared_set_is_refused(project: Path, rev: str, message: str) -> None:
    done = pspnet("data", "diff", "--", rev, cwd=project)
    assert (done.stderr, done.stdout, done.returncode) == (message, "", 1)


@pytest.mark.parametrize("lock", ["<<<<<<< HEAD\n", "[]\n", "stages: {a: {outs: [{path: x}]}}\n", "stages: {}\n"])
def test_an_unusable_lock_file_is_refused(project: Path, lock: str) -> None:
    write(project / "dvc.lock", lock)
    commit(project, "rubbish")
    done = pspnet("data", "diff", cwd=project)
    assert done.stderr.startswith("dvc.lock of HEAD: ")
    assert (done.stdout, done.returncode) == ("", 1)


def test_a_folder_outside_git_is_refused(project: Path, tmp_path: Path) -> None:
    shutil.move(project.parent / ".git", tmp_path / "away")
    done = pspnet("data", "diff", cwd=project)
    assert "is not a git checkout" in done.stderr
    assert (done.stdout, done.returncode) == ("", 1)
