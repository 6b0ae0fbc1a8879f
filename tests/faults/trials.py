"""Runs tests on copies of the tree, in children of this process, which has already loaded the libraries.

Each child imports `pspnet`, `flows` and `tests` from its copy, and so does every process it starts.
"""

import compileall
import importlib
import importlib.util
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

OURS = ("pspnet", "flows", "tests")
# Loading these takes ten times as long as running most of the tests.
LIBRARIES = (
    "torch", "torchvision", "torch.utils.data", "numpy", "pandas", "pyarrow", "pyarrow.parquet", "pyarrow.ipc", "cv2",
    "albumentations", "pydantic", "jinja2", "safetensors.torch", "hypothesis", "typer", "rich.progress",
    "mlflow.tracking", "mlflow.pyfunc", "prefect", "prefect.client.orchestration", "prefect.deployments", "dvc.repo",
)  # fmt: skip
TEST_SECONDS = 300  # a test that hangs has also noticed the fault
LIMIT_SECONDS = 3600.0  # limit for all tests of a trial together
LOG_LINES = 60
TIERS = ("e2e", "kills", "team")  # all other tests belong to `make test`


@dataclass(frozen=True)
class Change:
    """Replaces `old`, which must occur exactly once in the file, with `new`."""

    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        path = tree / self.file
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} contains this text {count} times, not once: {self.old!r}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Trial:
    name: str
    change: Change | None  # with None, the tests must pass
    tests: tuple[str, ...]
    markers: str = ""
    stop_at_first: bool = True


@dataclass(frozen=True)
class Result:
    passed: bool
    tier: str = ""  # the tier of the first test that failed
    test: str = ""
    seconds: float = 0.0


def load_libraries(tree: Path) -> None:
    runpy.run_path(str(tree / "pspnet/machine/offline.py"))["go_offline"]()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in LIBRARIES:
        importlib.import_module(name)


def copy_tree(tree: Path, copy: Path) -> None:
    """Copy the tree's files, except those git ignores, into a separate repository, and compile them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (tree / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, copy / name)
    identity = ("-c", "user.name=faults", "-c", "user.email=faults@localhost")
    # Some tests clone the repository.
    for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "sound")):
        subprocess.run(["git", *words], cwd=copy, check=True)
    for package in OURS:  # compiled once for all copies, because the copies keep the files' times
        compileall.compile_dir(copy / package, quiet=2)


class Trials:
    """Runs several trials at once, each in its own folder under `home`."""

    def __init__(self, tree: Path, home: Path, at_once: int) -> None:
        self._tree, self._home, self._at_once = tree, home, at_once
        self._sound = home / "sound"
        copy_tree(tree, self._sound)
        self._running: dict[int, tuple[Trial, int, float]] = {}  # pidfd -> trial, process, start time

    def check(self, trials: Sequence[Trial]) -> None:
        """Check that the old text of every change still occurs exactly once in the code."""
        problems = []
        for trial in trials:
            try:
                if trial.change:
                    text = (self._sound / trial.change.file).read_text(encoding="utf-8")
                    if (count := text.count(trial.change.old)) != 1:
                        problems.append(
                            f"{trial.name}: {trial.change.file} contains the old text {count} times, not once"
                        )
            except FileNotFoundError:
                problems.append(f"{trial.name}: {trial.change and trial.change.file} is missing")
        if problems:
            raise SystemExit("\n".join(problems))

    def log(self, trial: Trial) -> str:
        """Return the last lines of pytest's output, for a trial that should have passed."""
        lines = (self._home / trial.name / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, Result]]:
        """Run the trials. Yields each trial with its result as soon as the trial ends."""
        waiting = list(trials)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._at_once:
                    self._start(waiting.pop(0))
                for handle in self._over():
                    yield self._end(handle)
        finally:
            for handle in list(self._running):
                self._end(handle)

    def _start(self, trial: Trial) -> None:
        folder = self._home / trial.name
        copy = folder / "tree"
        shutil.copytree(self._sound, copy, symlinks=True)
        if trial.change:
            trial.change.apply(copy)
        (folder / "tmp").mkdir()
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            _become(trial, self._tree, copy, folder)
        with suppress(PermissionError, ProcessLookupError):  # the child also does this, perhaps first
            os.setpgid(process, process)
        self._running[os.pidfd_open(process)] = trial, process, time.monotonic()

    def _over(self) -> list[int]:
        ready, _, _ = select.select(list(self._running), [], [], 1.0)
        late = time.monotonic() - LIMIT_SECONDS
        return [handle for handle, (_, _, began) in self._running.items() if handle in ready or began < late]

    def _end(self, handle: int) -> tuple[Trial, Result]:
        trial, process, began = self._running.pop(handle)
        with suppress(ProcessLookupError):  # also kill every process that the child has started
            os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(handle)
        seconds = time.monotonic() - began
        folder = self._home / trial.name
        try:
            facts: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            result = Result(**{**facts, "seconds": seconds})
        except FileNotFoundError:
            result = Result(passed=False, tier="?", test="(hung or crashed)", seconds=seconds)
            _end_those_in(folder / "tmp")
        if result.passed or trial.change:
            shutil.rmtree(folder, ignore_errors=True)
        return trial, result


def _end_those_in(folder: Path) -> None:
    """Kill processes in separate sessions, which a killed test had no chance to end."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                process.kill()


class _Recorder:
    """Records the first test that failed, and its tier. Runs tests marked `kills` or `team` only if they are named."""

    def __init__(self, named: Sequence[str]) -> None:
        self.test, self.tier = "", ""
        self._tiers: dict[str, str] = {}
        self._named = {test for test in named if "::" in test}

    @pytest.hookimpl
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [
            item
            for item in items
            if item.nodeid.partition("[")[0] in self._named or not any(map(item.get_closest_marker, ("kills", "team")))
        ]

        for item in items:
            self._tiers[item.nodeid] = next((tier for tier in TIERS if item.get_closest_marker(tier)), "test")

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid
            self.tier = self._tiers[report.nodeid]

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.test:
            self.test, self.tier = f"{report.nodeid} (import)", "test"


def _become(trial: Trial, tree: Path, copy: Path, folder: Path) -> NoReturn:
    """Turn this child into the trial: import all our code again, from the copy."""
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for number in (1, 2):
            os.dup2(log, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]
        elsewhere = [path for path in sys.path if path and Path(path).resolve() != tree]
        sys.path[:] = [str(copy), *elsewhere]
        sys.path_importer_cache.clear()
        importlib.invalidate_caches()
        for name in [name for name in os.environ if name.startswith(("PSPNET_", "PYTEST_"))]:
            del os.environ[name]
        os.environ.update({"PYTHONPATH": str(copy), "TMPDIR": str(folder / "tmp")})
        tempfile.tempdir = None
        os.chdir(copy)
        _check_imports(copy)
        recorder = _Recorder(trial.tests)
        words = ["-q", "-p", "no:xdist", "--basetemp", str(folder / "tmp/pytest")]
        words += ["--timeout", str(TEST_SECONDS)]
        # The warning is about plugins that are already loaded here.
        words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        words += ["-x"] if trial.stop_at_first else []
        words += ["-m", trial.markers] if trial.markers else []
        ended = pytest.main([*words, *trial.tests], plugins=[recorder])
        nothing = (pytest.ExitCode.OK, *([pytest.ExitCode.NO_TESTS_COLLECTED] if trial.markers else []))
        told = Result(ended in nothing, recorder.tier or "?", recorder.test or f"(pytest ended with {int(ended)})")
        (folder / "result.part").write_text(json.dumps(asdict(told)), encoding="utf-8")
        (folder / "result.part").rename(folder / "result.json")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _check_imports(copy: Path) -> None:
    for name in ("pspnet", "flows"):
        found = importlib.util.find_spec(name)
        if found is None or not str(found.origin).startswith(f"{copy}/"):
            raise RuntimeError(f"{name} would be imported from {found and found.origin}, not from {copy}")
