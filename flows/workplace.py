"""The workspace of a run: either the checkout in which it was started, or a git worktree of its own.

A worktree contains the commit's files, and shares the checkout's DVC cache, remotes and state (checkpoints, MLflow
records). A run in a worktree produces the same results as a run in the checkout, and leaves the checkout unchanged.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil
import yaml

from flows.command import marked
from pspnet.config.editing import edited
from pspnet.config.params import Params
from pspnet.config.reading import read_yaml, validate
from pspnet.errors import Problem, UserError
from pspnet.machine import worktree
from pspnet.machine.outputs import whole_file
from pspnet.machine.process import end_all, exclusive, is_alive
from pspnet.machine.worktree import DVC_LOCK, git

PARAMS = "params.yaml"
DATA = ".dvc"
LAID_OUT = Path(".pspnet/laid-out")
KEPT = 3  # worktrees of earlier runs, kept for inspection
LAY_OUT_SECONDS = 600
CLAIMS_SECONDS = 600  # maximum time between creating a worktree and claiming it; many runs may start at once
FETCH_AFTER_SECONDS = (0, 10, 60)
POLL_SECONDS = 5
MARK = "PSPNET_WORKPLACE"  # environment variable of every process that works in the workspace


@dataclass(frozen=True)
class Workplace:
    folder: Path
    checkout: Path

    @classmethod
    def here(cls) -> "Workplace":
        folder = Path.cwd()
        found = git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir", "--show-prefix")
        if found.returncode:
            raise UserError(Problem(str(folder), "is not a git checkout", fix="Run `git init` and make a commit."))
        common, _, prefix = found.stdout.partition("\n")
        owner = Path(common).parent / prefix.strip()
        ours = folder.resolve().is_relative_to(state_of(owner) / "runs")
        return cls(folder, owner if ours else folder)  # a worktree that a person created counts as a checkout

    @property
    def is_worktree(self) -> bool:
        return self.folder.resolve() != self.checkout.resolve()

    @property
    def state(self) -> Path:
        return state_of(self.checkout)

    def environment(self, **more: str) -> dict[str, str]:
        return worktree.environment(self.folder) | {"PSPNET_STATE": str(self.state), MARK: str(self.folder)} | more

    def commit(self) -> str:
        return git(self.folder, "rev-parse", "HEAD").stdout.strip()

    @contextmanager
    def claimed(self, log: Callable[[str], object]) -> Iterator[None]:
        """Lock the workspace, so that only one attempt at a time on this machine works in it.

        Waits for an attempt that is alive: it may belong to this same run, which was presumed dead while the server was
        down, and its results can be reused. Ends attempts that are frozen, and processes that have lost their parent.
        """
        lock, waiting = self._lock(), False
        holder = Path(lock.lock_file).with_suffix(".holder.json")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=POLL_SECONDS)
            except filelock.Timeout:
                if not waiting:
                    log(f"Another run is working in {self.folder}; waiting for it.")
                waiting = True
                if self.is_worktree:  # in a checkout, the user may have suspended the attempt on purpose
                    self._end_frozen(holder, log)
        try:
            own = psutil.Process()
            holder.write_text(json.dumps([own.pid, own.create_time()]), encoding="utf-8")
            if orphans := marked(MARK, str(self.folder)):
                log(f"Ending {len(orphans)} processes left by an earlier run.")
                end_all(orphans)
            yield
        finally:
            lock.release()

    @contextmanager
    def quiet(self) -> Iterator[bool]:
        """Whether no run is working here and no earlier run left processes behind.

        No run can start inside the block.
        """
        try:
            with self._lock().acquire(blocking=False):
                yield not marked(MARK, str(self.folder))
        except filelock.Timeout:
            yield False

    def _lock(self) -> filelock.BaseFileLock:
        path = _lock_of(self.state / "runs" / self._tree) if self.is_worktree else self.state / "retrain.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path)

    def _end_frozen(self, holder: Path, log: Callable[[str], object]) -> None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            number, created = json.loads(holder.read_text(encoding="utf-8"))
            process = psutil.Process(number)
            if is_alive(number, created) and process.status() == psutil.STATUS_STOPPED:
                log(f"Process {process.pid} of that run is frozen; ending it.")
                for member in (process, *marked(MARK, str(self.folder))):
                    member.kill()

    @property
    def _tree(self) -> str:
        return self.folder.resolve().relative_to(self.state / "runs").parts[0]

    def set_params(self, overrides: Mapping[str, Any]) -> None:
        """Set parameters, given by names such as `finetune.optimizer.learning_rate`. Keeps comments and order."""
        if not overrides:
            return
        if not self.is_worktree:
            fix = "Use `pspnet retrain --set`, which creates a worktree, or edit params.yaml."
            raise UserError(Problem("overrides", "would change the checkout's params.yaml", fix=fix))
        path = self.folder / PARAMS
        text = edited(path.read_text(encoding="utf-8"), overrides, PARAMS)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
        validate(Params, read_yaml(path), PARAMS)

    def write(self, files: Mapping[str, str]) -> None:
        """Write the files that the run was given. Such files can select data and parameters, but never change code."""
        for name, content in files.items():
            self._refuse_code(name, content)
        for name, content in files.items():
            path = self.folder / name
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                with whole_file(path) as partial:
                    partial.write_text(content, encoding="utf-8")

    def _refuse_code(self, name: str, content: str) -> None:
        """Reject files that could change code: DVC runs the `cmd` in a .dvc file and overwrites the path it lists."""
        path, data = Path(name), name.endswith(DATA)
        hidden = path.is_absolute() or any(part.startswith(".") for part in path.parts)
        if hidden or not (data or name in (PARAMS, DVC_LOCK)):
            raise UserError(Problem(name, "may not be written by a run", f"{PARAMS}, {DVC_LOCK} or *{DATA}"))
        if (self.folder / path).resolve() != self.folder.resolve() / path:
            raise UserError(Problem(name, "is reached through a link", "a file of the checkout"))
        if data:
            self._refuse_more_than_data(path, content)

    def _refuse_more_than_data(self, path: Path, content: str) -> None:
        expected = f"what `dvc add {path.with_suffix('')}` writes"
        try:
            tracked = yaml.safe_load(content)
            places = [out["path"] for out in tracked["outs"]]
        except (yaml.YAMLError, TypeError, KeyError):
            raise UserError(Problem(str(path), "is not a .dvc file", expected)) from None
        if more := sorted({"cmd", "wdir"} & tracked.keys()):
            raise UserError(Problem(str(path), f"has '{more[0]}'", expected))
        if places != [path.stem]:
            raise UserError(Problem(str(path), f"names {', '.join(map(str, places)) or 'nothing'}", expected))
        if code := git(self.folder, "ls-files", "--", str(path.with_suffix(""))).stdout.split("\n")[0]:
            raise UserError(Problem(str(path), f"would replace {code}, which git tracks", expected))

    def read(self, *names: str) -> dict[str, str]:
        paths = {name: self.folder / name for name in names}
        return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.exists()}


def state_of(checkout: Path) -> Path:
    return (checkout / os.environ.get("PSPNET_STATE", ".pspnet")).resolve()


def lay_out(checkout: Path, run: str, commit: str) -> Workplace:
    """Return the run's worktree, and create it if needed.

    A resumed run finds its worktree as the run left it, even if another commit has been deployed in the meantime.
    """
    runs = state_of(checkout) / "runs"
    tree = runs / run
    with exclusive(runs / "lock", "the worktrees", LAY_OUT_SECONDS):
        prefix = git(checkout, "rev-parse", "--show-prefix").stdout.strip()
        project = tree / prefix
        if not (project / LAID_OUT).exists():
            _fetch(checkout, commit)
            project = worktree.add(checkout, tree, commit)
            (project / LAID_OUT).parent.mkdir(exist_ok=True)
            (project / LAID_OUT).touch()
        os.utime(tree)
        _prune(checkout, runs, tree)
    return Workplace(project, checkout)


def _fetch(checkout: Path, commit: str) -> None:
    """Fetch the commit. Tries again on errors, because the git server may be down for a moment.

    If the commit is still missing, the run fails later, when it uses the commit.
    """
    for seconds in FETCH_AFTER_SECONDS:
        if git(checkout, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0:
            return
        time.sleep(seconds)
        git(checkout, "fetch", "--all", "--quiet")


def _prune(checkout: Path, runs: Path, current: Path) -> None:
    others = [path for path in runs.iterdir() if path.is_dir() and path != current]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    claimed = time.time() - CLAIMS_SECONDS
    for tree in [tree for tree in others[KEPT:] if tree.stat().st_mtime < claimed]:
        with suppress(filelock.Timeout), filelock.FileLock(_lock_of(tree), blocking=False):
            worktree.discard(checkout, tree)


def _lock_of(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.lock")
