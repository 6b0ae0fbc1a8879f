"""Prefect's server as a process of ours: it ends with us, also when we are killed, and no Ctrl-C but ours ends it.

Prefect would start one by itself. That one is left behind by a SIGKILL, and gone at Ctrl-C before the flow has told
it how it ended, for which Prefect then waits for minutes. It would also obey whoever reaches its port, and who may
change a deployment runs commands: ours wants a password, and answers no page but its own.
"""

import atexit
import os
import secrets
import socket
import subprocess
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from threading import Lock, Thread

from pspnet import terminal
from pspnet.errors import EXIT_TEMPORARY, Busy, Problem, UserError
from pspnet.outputs import private_file, whole_file
from pspnet.worktree import tethered

HOST = "127.0.0.1"
STARTS_SECONDS = 120
STOPS_SECONDS = 10
LIVES_SECONDS = 60.0  # one that ends sooner than this after its start ...
DEATHS = 3  # ... so many times in a row will not live
PASSWORD = "prefect-password"  # noqa: S105  the name of a file in the state folder
TETHERED = "PSPNET_TETHERED"  # in the environment of a run whose server ends with its parent: it could tell nobody
# `prefect server start` starts this, too, and leaves it behind when it is killed.
SERVER = ("uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "warning", "--fd", "0")
BRIEF = {  # for one run: no pages, nothing that runs by itself
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
}


class Server:
    """Started again if it is killed alone: the flow goes on, and what it asks waits on the socket, which stays open."""

    def __init__(self, listener: socket.socket, environment: dict[str, str], log: Path) -> None:
        self._listener, self._environment, self._log = listener, environment, log
        self._lock = Lock()
        self._stopped = False
        self.process = self._run()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    def wait(self) -> None:
        deadline = time.monotonic() + STARTS_SECONDS
        while not _answers(self.address):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise UserError(Problem("Prefect's server", "does not start", fix=f"{self._log} says why."))
        Thread(target=self._keep, name="keeps Prefect's server", daemon=True).start()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self.process.terminate()
        try:
            self.process.wait(STOPS_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._listener.close()

    def _run(self) -> subprocess.Popen[bytes]:
        with open(self._log, "ab", opener=private_file) as output:
            return subprocess.Popen(
                tethered(*SERVER), env=self._environment,
                stdin=self._listener.fileno(),  # the --fd of SERVER
                stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C: the flows end first, and tell it so
            )  # fmt: skip

    def _keep(self) -> None:
        deaths = 0
        while True:
            started = time.monotonic()
            self.process.wait()
            with self._lock:
                if self._stopped:
                    return
                deaths = deaths + 1 if time.monotonic() - started < LIVES_SECONDS else 1
                if deaths > DEATHS:
                    terminal.err.print(f"Prefect's server ends again and again. {self._log} says why.", markup=False)
                    os._exit(EXIT_TEMPORARY)  # who asks it would wait for minutes; what we have started ends with us
                terminal.err.print("Prefect's server was killed. It is started again; the run goes on.")
                self.process = self._run()


def start_for_this_run(state: Path) -> None:
    """Unless a person has named one."""
    if os.environ.get("PREFECT_API_URL"):
        named()
        return
    start(state, 0, new_password(), BRIEF)
    os.environ["PREFECT_UI_URL"] = ""  # its pages would be gone by the time somebody follows a link


def named() -> str:
    """The address of the server that a person has named, once it has let us in."""
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        fix = "`prefect server start` starts one; then export PREFECT_API_URL=http://HOST:4200/api"
        raise UserError(Problem("PREFECT_API_URL", "is not set", "the address of a Prefect server", fix))
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():  # which needs no password
            raise Busy(f"{url}: the Prefect server does not answer ({error}).")
        try:
            client.read_work_pools(limit=1)
        except PrefectHTTPStatusError as refused:
            if refused.response.status_code != HTTPStatus.UNAUTHORIZED:
                raise
            found = "is wrong" if os.environ.get("PREFECT_API_AUTH_STRING") else "is not set"
            fix = "Export the server's PREFECT_SERVER_API_AUTH_STRING under this name."
            raise UserError(
                Problem("PREFECT_API_AUTH_STRING", found, f"the password of {url}, NAME:PASSWORD", fix)
            ) from None
    return url


def start(state: Path, port: int, password: str, more: dict[str, str]) -> Server:
    """To be called before Prefect is loaded, which reads the address then, and at exit has still things to tell it."""
    listener = _listener(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    environment = {
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": address,
        "PREFECT_UI_API_URL": f"{address}/api",
    }
    server = Server(listener, os.environ | environment | more, state / "prefect-server.log")
    atexit.register(server.stop)
    server.wait()
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    os.environ["PREFECT_API_AUTH_STRING"] = password
    return server


def new_password() -> str:
    return f"pspnet:{secrets.token_urlsafe(32)}"


def kept_password(state: Path) -> str:
    """The same each time, so that a browser may keep it; another one if somebody else could read it."""
    path = state / PASSWORD
    if path.exists() and not path.stat().st_mode & 0o077:
        return path.read_text(encoding="utf-8").strip()
    password = new_password()
    with whole_file(path) as partial:
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        partial.write_text(f"{password}\n", encoding="utf-8")
    return password


def _listener(port: int) -> socket.socket:
    """Ours before the server has loaded: nobody else on this machine can answer in its place, now or later."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it where it has made the socket
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError:
        listener.close()
        fix = "Stop it, give another --port, or export PREFECT_API_URL to use it."
        raise UserError(Problem(f"http://{HOST}:{port}", "has a server already", fix=fix)) from None
    return listener


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:  # noqa: S310  our own http
            return bool(answer.status == 200)
    except OSError:
        return False
