"""Runs the Prefect server as a child process that exits when we do, even if we are killed. Ctrl-C does not reach it.

By default, Prefect starts a server by itself. That server survives a SIGKILL of the flow, and Ctrl-C ends it before the
flow has reported its final state, so Prefect waits for minutes. It would also obey anyone who can reach its port, and
whoever can change a deployment can run commands. Our server asks for a password and rejects pages from other sites.
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

from pspnet.errors import EXIT_TEMPORARY, Busy, Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import private_file, whole_file
from pspnet.machine.worktree import tethered

HOST = "127.0.0.1"
STARTS_SECONDS = 120
STOPS_SECONDS = 10
LIVES_SECONDS = 60.0  # a server that exits sooner than this has failed to start
DEATHS = 3  # the server is not restarted after more failures in a row than this
PASSWORD = "prefect-password"  # noqa: S105  the name of a file in the state folder
TETHERED = "PSPNET_TETHERED"  # environment variable set for runs that must exit when their parent does, like the server
# `prefect server start` starts this program too, and leaves it behind when killed.
SERVER = ("uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "warning", "--fd", "0")
ONE_RUN = {  # settings for a single run: no UI, no background services
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
}


class Server:
    """A Prefect server that is restarted if it is killed.

    While the server is down, requests wait on the socket, which we keep open.
    """

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
                raise UserError(Problem("Prefect's server", "did not start", fix=f"The reason is in {self._log}."))
        Thread(target=self._keep_alive, name="restarts Prefect's server", daemon=True).start()

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
                stdin=self._listener.fileno(),  # SERVER's --fd
                stdout=output, stderr=output,
                start_new_session=True,  # on Ctrl-C, the flows stop first and report their state to the server
            )  # fmt: skip

    def _keep_alive(self) -> None:
        deaths = 0
        while True:
            started = time.monotonic()
            self.process.wait()
            with self._lock:
                if self._stopped:
                    return
                deaths = deaths + 1 if time.monotonic() - started < LIVES_SECONDS else 1
                if deaths > DEATHS:
                    terminal.err.print(f"Prefect's server keeps exiting. The reason is in {self._log}.", markup=False)
                    os._exit(EXIT_TEMPORARY)  # requests to the server would hang for minutes; our children end with us
                terminal.err.print("Prefect's server was killed. Restarting it; the run continues.")
                self.process = self._run()


def start_for_this_run(state: Path) -> None:
    """Start a server that lasts as long as this run, unless PREFECT_API_URL gives the address of another server."""
    if os.environ.get("PREFECT_API_URL"):
        configured_url()
        return
    start(state, 0, new_password(), ONE_RUN)
    os.environ["PREFECT_UI_URL"] = ""  # the server is gone before anyone can follow a link


def configured_url() -> str:
    """The value of PREFECT_API_URL. Checks that the server there accepts our password."""
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        fix = "Start one with `prefect server start`, then export PREFECT_API_URL=http://HOST:4200/api"
        raise UserError(Problem("PREFECT_API_URL", "is not set", "the address of a Prefect server", fix))
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():  # needs no password
            raise Busy(f"{url}: the Prefect server does not answer ({error}).")
        try:
            client.read_work_pools(limit=1)
        except PrefectHTTPStatusError as refused:
            if refused.response.status_code != HTTPStatus.UNAUTHORIZED:
                raise
            found = "is wrong" if os.environ.get("PREFECT_API_AUTH_STRING") else "is not set"
            fix = "Set it to the server's PREFECT_SERVER_API_AUTH_STRING."
            raise UserError(
                Problem("PREFECT_API_AUTH_STRING", found, f"the password of {url}, NAME:PASSWORD", fix)
            ) from None
    return url


def start(state: Path, port: int, password: str, more: dict[str, str]) -> Server:
    """Start a server. Call this before importing Prefect, which reads the address only when it is imported."""
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


def stored_password(state: Path) -> str:
    """The password, from a file, so that it stays the same and browsers can remember it.

    It is replaced if other users could have read the file.
    """
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
    """Bind the port before the server has loaded, so that no other process can answer in the server's place."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio sets it only on sockets it creates itself
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError:
        listener.close()
        fix = "Stop it, choose another --port, or set PREFECT_API_URL to use it."
        raise UserError(Problem(f"http://{HOST}:{port}", "is used by another server", fix=fix)) from None
    return listener


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:  # noqa: S310  our own http
            return bool(answer.status == 200)
    except OSError:
        return False
