"""Prefect's server as a process of ours: it ends with us, also when we are killed, and no Ctrl-C but ours ends it.

Prefect would start one by itself. That one is left behind by a SIGKILL, and gone at Ctrl-C before the flow has told
it how it ended, for which Prefect then waits for minutes.
"""

import atexit
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from pspnet.errors import Problem, UserError
from pspnet.outputs import private_file
from pspnet.worktree import tethered

STARTS_SECONDS = 120
STOPS_SECONDS = 10
TETHERED = "PSPNET_TETHERED"  # in the environment of a run whose server ends with its parent: it could tell nobody
# `prefect server start` starts this, too, and leaves it behind when it is killed.
SERVER = (
    "uvicorn",
    "--factory",
    "prefect.server.api.server:create_app",
    "--host",
    "127.0.0.1",
    "--log-level",
    "warning",
)
BRIEF = {  # for one run: no pages, nothing that runs by itself
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
}


def start_for_this_run(state: Path) -> None:
    """Unless a person has named one."""
    if not os.environ.get("PREFECT_API_URL"):
        start(state, _free_port(), BRIEF)
        os.environ["PREFECT_UI_URL"] = ""  # its pages would be gone by the time somebody follows a link


def start(state: Path, port: int, more: dict[str, str]) -> subprocess.Popen[bytes]:
    """To be called before Prefect is loaded, which reads the address then, and at exit has still things to tell it."""
    address = f"http://127.0.0.1:{port}"
    log = state / "prefect-server.log"
    if _answers(address):
        fix = "Stop it, give another --port, or export PREFECT_API_URL to use it."
        raise UserError(Problem(address, "has a server already", fix=fix))
    with open(log, "ab", opener=private_file) as output:
        process = subprocess.Popen(
            tethered(*SERVER, "--port", str(port)), env=os.environ | {"PREFECT__SERVER_FINAL": "1"} | more,
            stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C: the flows end first, and tell it so
        )  # fmt: skip
    atexit.register(stop, process)
    deadline = time.monotonic() + STARTS_SECONDS
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(Problem("Prefect's server", "does not start", fix=f"{log} says why."))
        time.sleep(0.2)
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOPS_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:  # noqa: S310  our own http
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
