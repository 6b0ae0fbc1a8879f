import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from flows import workplace
from flows.command import marked
from flows.workplace import KEPT, MARK, Workplace, lay_out, state_of
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from tests.e2e.pipeline import environment, run
from tests.files import contents
from tests.flows.processes import kill_all, left
from tests.flows.repository import dvc
from tests.parameters import ROOT
from tests.waiting import wait_until

HOLD = """
import sys, time
from pathlib import Path
from flows.workplace import Workplace
with Workplace(Path(sys.argv[1]), Path(sys.argv[2])).claimed(print):
    print("holds", flush=True)
    time.sleep(50)
"""
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")


# DVC uses pygtrie in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture(autouse=True)
def _of_this_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("PSPNET_STATE", raising=False)
    monkeypatch.setattr(workplace, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(workplace, "FETCH_AFTER_SECONDS", (0,))
    yield
    kill_all(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A workspace with the demo's params.yaml, in a folder that is not a git worktree."""
    folder = tmp_path / "checkout/.pspnet/runs/one"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return Workplace(folder, tmp_path / "checkout")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with only the files that a worktree needs."""
    folder = tmp_path / "project"
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, *GIT, "commit", "--quiet", "--message", "start")
    with dvc(folder) as repo, repo.config.edit("local") as local:
        local["remote"]["folder"] = {"url": str(folder / "shared")}
    return folder


@pytest.fixture
def laid_out(project: Path) -> Workplace:
    return lay_out(project, "first", head(project))


def head(folder: Path) -> str:
    return run(folder, "git", "rev-parse", "HEAD").strip()


class TestLayingOut:
    def test_a_worktree_has_the_commit_and_the_checkouts_cache_remotes_and_state(
        self, project: Path, laid_out: Workplace
    ) -> None:
        assert laid_out == Workplace(project / ".pspnet/runs/first", project)
        assert laid_out.is_worktree
        assert (laid_out.folder / "dvc.yaml").read_bytes() == (project / "dvc.yaml").read_bytes()
        assert laid_out.commit() == head(project)
        assert laid_out.state == state_of(project)
        environment = laid_out.environment()
        assert environment["PSPNET_STATE"] == str(project / ".pspnet")
        assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(laid_out.folder)
        with dvc(laid_out.folder) as repo:
            assert repo.config["cache"]["dir"] == str(project / ".dvc/cache")
            assert repo.config["remote"]["folder"]["url"] == str(project / "shared")
            assert repo.config["core"]["autostage"]

    def test_relative_paths_in_the_checkouts_settings_keep_their_meaning(self, project: Path) -> None:
        (project / ".dvc/config.local").write_text(
            "[cache]\ndir = ../../cache\n['remote \"my.own\"']\nurl = ../../own\n"
        )
        with dvc(lay_out(project, "first", "HEAD").folder) as repo:
            assert repo.config["cache"]["dir"] == str(project.parent / "cache")
            assert repo.config["remote"]["my.own"]["url"] == str(project.parent / "own")
            assert repo.config["remote"]["folder"]["url"] == str(project / ".pspnet/dvc-remote")

    def test_a_project_in_a_subfolder_of_its_repository_gets_a_worktree_with_that_subfolder(
        self, project: Path
    ) -> None:
        sub = project / "sub"
        for name in ("dvc.yaml", ".dvc/config"):
            (sub / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, sub / name)
        run(sub, "git", "add", "--all")
        run(sub, *GIT, "commit", "--quiet", "--message", "sub")
        place = lay_out(sub, "first", "HEAD")
        assert place == Workplace(sub / ".pspnet/runs/first/sub", sub)
        with dvc(place.folder) as repo:
            assert repo.root_dir == str(place.folder)
            assert repo.config["cache"]["dir"] == str(sub / ".dvc/cache")

    def test_a_checkout_without_dvc_is_refused(self, project: Path) -> None:
        shutil.rmtree(project / ".dvc")
        with pytest.raises(UserError, match="not inside of a DVC repository"):
            lay_out(project, "first", "HEAD")

    def test_a_process_finds_its_workplace(
        self, project: Path, laid_out: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(laid_out.folder)
        assert Workplace.here() == laid_out
        monkeypatch.chdir(project)
        assert Workplace.here() == Workplace(project, project)
        assert not Workplace.here().is_worktree

    def test_a_worktree_made_by_a_person_is_a_checkout(
        self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(project, "git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "persons"), "HEAD")
        monkeypatch.chdir(tmp_path / "persons")
        assert not Workplace.here().is_worktree

    def test_a_resumed_run_finds_its_worktree_as_it_was_left(self, project: Path, laid_out: Workplace) -> None:
        (laid_out.folder / "params.yaml").write_text("of this run\n")
        assert lay_out(project, "first", head(project)) == laid_out
        assert (laid_out.folder / "params.yaml").read_text() == "of this run\n"

    def test_a_partly_laid_out_worktree_is_laid_out_again(self, project: Path, laid_out: Workplace) -> None:
        (laid_out.folder / workplace.LAID_OUT).unlink()
        (laid_out.folder / "dvc.yaml").unlink()
        lay_out(project, "first", head(project))
        assert (laid_out.folder / "dvc.yaml").exists()

    def test_an_unknown_commit_is_refused(self, project: Path) -> None:
        with pytest.raises(UserError, match="cannot become a git worktree"):
            lay_out(project, "none", "0123456789" * 4)

    def test_a_commit_that_only_the_remote_has_is_fetched(self, project: Path, tmp_path: Path) -> None:
        other = tmp_path / "clone"
        run(tmp_path, "git", "clone", "--quiet", str(project), str(other))
        run(project, *GIT, "commit", "--quiet", "--message", "new", "--allow-empty")
        assert lay_out(other, "new", head(project)).commit() == head(project)

    def test_old_worktrees_are_removed_unless_they_are_in_use(self, project: Path, laid_out: Workplace) -> None:
        runs = project / ".pspnet/runs"
        for number in range(KEPT + 2):
            (runs / f"run-{number}").mkdir()
        for tree in runs.iterdir():
            name, _, age = tree.name.partition("-")
            os.utime(tree, times=(int(age),) * 2 if name == "run" else (0, 0))
        with laid_out.claimed(print):
            lay_out(project, "last", "HEAD")
        kept = {path.name for path in runs.iterdir() if path.is_dir()}
        assert kept == {"last", "first", *(f"run-{number}" for number in range(2, KEPT + 2))}
        listed = run(project, "git", "worktree", "list", "--porcelain").splitlines()
        trees = {Path(line.split()[1]).name for line in listed if line.startswith("worktree ")}
        assert trees == {project.name, "last", "first"}

    def test_worktrees_are_kept_until_they_are_claimed(self, project: Path) -> None:
        begun = [project / f".pspnet/runs/begun-{number}" for number in range(KEPT + 2)]
        for tree in begun:
            tree.mkdir(parents=True)
        lay_out(project, "one-more", "HEAD")
        assert all(tree.exists() for tree in begun)
        for age, tree in enumerate(begun):
            os.utime(tree, times=(age, age))
        lay_out(project, "later", "HEAD")
        assert not any(tree.exists() for tree in begun[:2])


class TestParams:
    def test_are_set_and_everything_else_is_kept(self, place: Workplace) -> None:
        path = place.folder / "params.yaml"
        before = path.read_text()
        place.set_params(
            {"finetune.optimizer.learning_rate": 0.01, "backbone.stem": "deep", "dataset.ignore_values": [7]}
        )
        after = path.read_text()
        changes = difflib.ndiff(before.splitlines(), after.splitlines())
        assert [" ".join(line.split()) for line in changes if line[0] in "+-"] == [
            "- ignore_values: []", "+ ignore_values: [7]",
            "- stem: seven # seven | deep | deep_narrow", "+ stem: deep # seven | deep | deep_narrow",
            "- learning_rate: 0.004", "+ learning_rate: 0.01",
        ]  # fmt: skip
        assert read_yaml(path)["backbone"]["stem"] == "deep"

    def test_a_section_of_a_different_kind_replaces_the_whole_section(self, place: Workplace) -> None:
        place.set_params({"pretrain.method": {"kind": "none"}})
        assert read_yaml(place.folder / "params.yaml")["pretrain"]["method"] == {"kind": "none"}

    def test_are_not_touched_without_overrides(self, place: Workplace) -> None:
        before = (place.folder / "params.yaml").stat().st_mtime_ns
        place.set_params({})
        assert (place.folder / "params.yaml").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("finetune.lerning_rate", 0.01, "did you mean 'finetune.optimizer.learning_rate'"),
            ("finetune.optimizer.learning_rate", "fast", "expected a number"),
            ("finetune", 3, "finetune is 3"),
            ("finetune.epochs.first", 3, "'epochs' has no keys"),
            ("nothing.at.all", 3, "unknown key 'nothing'"),
        ],
    )
    def test_mistakes_are_reported(self, place: Workplace, name: str, value: object, message: str) -> None:
        with pytest.raises(UserError, match=message):
            place.set_params({name: value})

    def test_of_a_checkout_are_not_changed(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="would change the checkout's params"):
            Workplace(tmp_path, tmp_path).set_params({"finetune.epochs": 1})


def data_file(path: str, **more: Any) -> str:
    """Return the content of a .dvc file."""
    return json.dumps({"outs": [{"path": path, "md5": "0" * 32 + ".dir", "hash": "md5"}], **more})


class TestFiles:
    """Files in the parameters of a run. Anyone with access to Prefect can set these parameters."""

    def test_are_written_and_read(self, place: Workplace) -> None:
        files = {"params.yaml": "{}", "data/raw.dvc": data_file("raw"), "dvc.lock": "schema: '2.0'\n"}
        place.write(files)
        assert place.read(*files, "none") == files

    def test_that_are_unchanged_are_not_touched(self, place: Workplace) -> None:
        place.write({"dvc.lock": "a"})
        before = (place.folder / "dvc.lock").stat().st_mtime_ns
        place.write({"dvc.lock": "a"})
        assert (place.folder / "dvc.lock").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        "name",
        [
            "dvc.yaml", "prefect.yaml", "pspnet/cli.py", "flows/new.py", "sitecustomize.py", "sub/params.yaml",
            ".git/hooks/post-checkout", ".git/config.dvc", ".dvc/config", ".dvc", "data/.dvc", "", ".",
            "../outside.dvc", "data/../../outside.dvc", "data/../params.yaml", "/etc/outside.dvc", "raw.dvc/",
        ],
    )  # fmt: skip
    def test_that_could_be_code_are_refused(self, place: Workplace, tmp_path: Path, name: str) -> None:
        before = contents(tmp_path)
        with pytest.raises(
            UserError, match=r"may not be written by a run; expected params\.yaml, dvc\.lock or \*\.dvc"
        ):
            place.write({"dvc.lock": "a", name: data_file("outside")})
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("name", ["link/outside.dvc", "within/raw.dvc", "params.yaml", "dvc.lock"])
    def test_behind_a_link_are_refused(self, place: Workplace, tmp_path: Path, name: str) -> None:
        (place.folder / "pspnet").mkdir()
        (place.folder / "link").symlink_to(tmp_path)
        (place.folder / "within").symlink_to("pspnet")
        (place.folder / "params.yaml").unlink()
        for linked in ("params.yaml", "dvc.lock"):
            (place.folder / linked).symlink_to("pspnet/cli.py")
        before = contents(tmp_path)
        with pytest.raises(UserError, match="is reached through a link"):
            place.write({name: data_file(Path(name).stem)})
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (data_file("raw", cmd="touch /tmp/x"), "has 'cmd'"),
            (data_file("raw", wdir="../pspnet"), "has 'wdir'"),
            (data_file("../pspnet"), r"names \.\./pspnet"),
            (data_file("/etc"), "names /etc"),
            ("outs: []", "names nothing"),
            ("[1]", "is not a .dvc file"),
            ("outs: [", "is not a .dvc file"),
            ("!!python/object/apply:os.getpid []", "is not a .dvc file"),
        ],
    )
    def test_for_dvc_that_say_more_than_data_are_refused(self, place: Workplace, content: str, found: str) -> None:
        with pytest.raises(UserError, match=f"^data/raw.dvc: {found}; expected what `dvc add data/raw` writes"):
            place.write({"data/raw.dvc": content})

    def test_for_dvc_that_would_replace_code_are_refused(self, project: Path) -> None:
        (project / "pspnet").mkdir()
        (project / "pspnet/cli.py").touch()
        run(project, "git", "add", "pspnet")
        with pytest.raises(UserError, match=r"^pspnet\.dvc: would replace pspnet/cli\.py, which git tracks"):
            Workplace(project, project).write({"pspnet.dvc": data_file("pspnet")})

    def test_written_by_dvc_are_accepted(self, project: Path, laid_out: Workplace) -> None:
        (project / "data/raw").mkdir(parents=True)
        (project / "data/raw/image.png").write_bytes(b"bytes")
        with dvc(project) as repo:
            repo.add("data/raw")
        laid_out.write({"data/raw.dvc": (project / "data/raw.dvc").read_text()})
        with dvc(laid_out.folder) as repo:
            repo.checkout("data/raw.dvc")
        assert (laid_out.folder / "data/raw/image.png").read_bytes() == b"bytes"


class TestClaiming:
    def test_a_run_waits_for_a_live_run(self, place: Workplace) -> None:
        lines: list[str] = []
        held, over = Event(), Event()

        def hold() -> None:
            with place.claimed(print):
                held.set()
                over.wait(60)

        def tell(line: str) -> None:
            lines.append(line)
            over.set()

        other = Thread(target=hold)
        other.start()
        assert held.wait(60)
        with place.claimed(tell):
            assert over.is_set()
        other.join()
        assert lines == [f"Another run is working in {place.folder}; waiting for it."]

    def test_a_checkout_and_its_worktree_are_claimed_separately(self, place: Workplace) -> None:
        lines: list[str] = []
        with place.claimed(lines.append), Workplace(place.checkout, place.checkout).claimed(lines.append):
            pass
        assert lines == []

    @contextmanager
    def holder(self, place: Workplace) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(place.folder), str(place.checkout)],
            env=environment(ROOT), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            try:
                assert process.stdout
                assert process.stdout.readline() == "holds\n"
                yield process
            finally:
                process.kill()

    def orphan(self, place: Workplace) -> None:
        """A stage whose parent has died."""
        subprocess.run(["sh", "-c", "sleep 50 &"], env=os.environ | {MARK: str(place.folder)}, check=True, timeout=10)
        wait_until(lambda: len(marked(MARK, str(place.folder))) == 1)

    @pytest.mark.e2e
    def test_a_killed_run_leaves_no_claim_behind(self, place: Workplace) -> None:
        lines: list[str] = []
        with self.holder(place) as holder:
            holder.kill()
        with place.claimed(lines.append):
            pass
        assert lines == []

    @pytest.mark.e2e
    def test_a_frozen_run_is_ended_with_its_stage(self, place: Workplace, tmp_path: Path) -> None:
        lines: list[str] = []
        with self.holder(place) as holder:
            self.orphan(place)
            holder.send_signal(signal.SIGSTOP)
            with place.claimed(lines.append):
                assert holder.wait(60) == -signal.SIGKILL
        # A killed process may remain visible for another moment and be reported as left behind.
        assert lines[1] == f"Process {holder.pid} of that run is frozen; ending it."
        assert left(tmp_path) == []

    @pytest.mark.e2e
    def test_only_orphans_of_this_workplace_are_ended(self, place: Workplace) -> None:
        lines: list[str] = []
        other = Workplace(place.folder.with_name("two"), place.checkout)
        self.orphan(place)
        self.orphan(other)
        with place.claimed(lines.append):
            assert marked(MARK, str(place.folder)) == []
            assert len(marked(MARK, str(other.folder))) == 1
        assert lines == ["Ending 1 processes left by an earlier run."]
