"""Measures how much time DVC, the flow and a team's workers add to the demo.

The same work is done in four ways, each in clones of this checkout. Then all but the bare commands are repeated without
any changes. Servers and workers run on this machine and start before the clock does.
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml
from pipeline import DEMO, ROOT, processor, run

from flows.laptop.server import new_password

AGAIN = 3  # number of repetitions; the median is shown
STARTS_SECONDS = 120
REGISTER = ["pspnet", "register", "models/segmenter", "--promote"]
GIT = ["git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org"]


def main() -> None:
    ways = {"bare commands": bare, "`dvc repro`": dvc, "`pspnet retrain`": in_process, "workers": workers}
    print(f"{processor()}, {os.cpu_count()} cores\n\n| | seconds | again |\n|---|---:|---:|", flush=True)
    for name, prepare in ways.items():
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
            work = stack.enter_context(prepare(Path(temporary)))
            first, again = work(), [work() for _ in range(AGAIN)] if name != "bare commands" else []
        shown = f"{statistics.median(again):.1f}" if again else ""
        print(f"| {name} | {first:.1f} | {shown} |", flush=True)


@contextmanager
def bare(folder: Path) -> Iterator[Callable[[], float]]:
    clone = demo(folder)
    stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
    commands = [["sh", "-c", stage["cmd"]] for stage in stages.values()]
    yield lambda: sum(run(command, clone) for command in [*commands, REGISTER])


@contextmanager
def dvc(folder: Path) -> Iterator[Callable[[], float]]:
    clone = demo(folder)
    commands = [["dvc", "add", "--quiet", "data/raw"], ["dvc", "repro"], REGISTER, ["dvc", "push", "--run-cache"]]
    yield lambda: sum(run(command, clone) for command in commands)


@contextmanager
def in_process(folder: Path) -> Iterator[Callable[[], float]]:
    clone = demo(folder)
    yield lambda: run(["pspnet", "retrain"], clone)


@contextmanager
def workers(folder: Path) -> Iterator[Callable[[], float]]:
    """A team's servers and workers. The servers store their data in SQLite."""
    person = demo(folder, "person")
    run(["dvc", "remote", "modify", "folder", "url", str(folder / "remote")], person)
    run([*GIT, "commit", "--quiet", "--all", "--message", "The team's remote"], person)
    run(["git", "remote", "remove", "origin"], person)
    prefect, mlflow = free_port(), free_port()
    password = new_password()
    team = {
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "PREFECT_HOME": str(folder / "prefect"),
    }
    os.environ.update(team)
    with ExitStack() as stack:
        store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/files"]
        stack.enter_context(started(["mlflow", "server", "--port", str(mlflow), "--workers", "1", *store], folder))
        stack.enter_context(started(["prefect", "server", "start", "--port", str(prefect)], folder))
        answers(f"http://127.0.0.1:{mlflow}/health")
        answers(f"http://127.0.0.1:{prefect}/api/health")
        for pool in ("cpu", "gpu"):
            run(["git", "clone", "--quiet", str(person), str(folder / pool)], folder)
        run(DEMO, folder / "cpu")
        run(["pspnet", "deploy"], person)
        for pool in ("cpu", "gpu"):
            stack.enter_context(started(["pspnet", "worker", pool], folder / pool))
        yield lambda: run(["prefect", "deployment", "run", "retrain/retrain", "--watch"], person)
    for name in team:
        del os.environ[name]


def demo(folder: Path, name: str = "clone") -> Path:
    clone = folder / name
    run(["git", "clone", "--quiet", str(ROOT), str(clone)], folder)
    run(DEMO, clone)
    return clone


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[None]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=sys.stderr, start_new_session=True) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def answers(address: str) -> None:
    deadline = time.monotonic() + STARTS_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):  # noqa: S310  our own http
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
