"""Access to Prefect's server, and runs whose server is killed. tests/e2e/test_disturbed.py kills the whole command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from websockets import Subprotocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.laptop import server
from pspnet.errors import UserError
from tests.e2e.pipeline import environment
from tests.flows.processes import kill_all, left
from tests.flows.server import PrefectServer, copy_tables
from tests.network import free_port
from tests.parameters import ROOT

KILLED = """
import sys
from pathlib import Path
import psutil
from pspnet.machine.offline import go_offline, configure_prefect
go_offline()
state = Path(sys.argv[1])
configure_prefect(state)
from flows.laptop import server
server.start_for_this_run(state)
from prefect import flow, get_client, task

@task
def stage(number):
    return number

@flow(persist_result=False)
def retrain():
    stage(1)
    (found,) = [one for one in psutil.Process().children(recursive=True) if "uvicorn" in one.cmdline()]
    found.kill()
    stage(2)

state = retrain(return_state=True)
with get_client(sync_client=True) as client:
    (run,) = client.read_flow_runs()
print(state.name, run.state_name)
"""
DOES_NOT_LIVE = """
import sys, time
from pathlib import Path
from flows.laptop import server
folder = Path(sys.argv[1])
server.SERVER, server.LIVES_SECONDS, server.DEATHS = ("answering",), 3600, 1
started = server.start(folder, 0, server.new_password(), {})
(folder / "answering.py").write_text("raise SystemExit('no')")
started.process.kill()
time.sleep(600)
"""
ANSWERING = """
import socket
listener = socket.socket(fileno=0)
while True:
    with listener.accept()[0] as connection:
        connection.recv(9999)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""


REFUSES_SECONDS = 60


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.e2e
class TestAccess:
    def status(self, prefect: PrefectServer, **options: Any) -> int:
        """Return the HTTP status of a request for the deployments. Access to them would let an
        attacker run commands.
        """
        return httpx.post(f"{prefect.api}/deployments/filter", json={}, **options).status_code

    def test_the_password_is_required(self, prefect: PrefectServer) -> None:
        assert self.status(prefect) == 401
        assert self.status(prefect, auth=("pspnet", "")) == 401
        assert self.status(prefect, auth=("pspnet", "x" * 43)) == 401
        name, _, word = prefect.password.partition(":")
        assert self.status(prefect, auth=(name, word)) == 200

    @pytest.mark.parametrize("subprotocols", [None, [Subprotocol("prefect")]], ids=["old", "prefect"])
    def test_the_event_stream_requires_the_password_too(
        self, prefect: PrefectServer, subprotocols: list[Subprotocol] | None
    ) -> None:
        address = prefect.api.replace("http://", "ws://") + "/events/in"
        with (
            pytest.raises((InvalidStatus, ConnectionClosed)),
            connect(address, subprotocols=subprotocols) as socket,
        ):
            if subprotocols:
                socket.send(json.dumps({"type": "auth", "token": "wrong"}))
                socket.recv(REFUSES_SECONDS)
            socket.recv(REFUSES_SECONDS)

    def test_pages_of_other_sites_are_refused(self, prefect: PrefectServer) -> None:
        def allowed(origin: str) -> Any:
            asks = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
            found = httpx.options(f"{prefect.api}/deployments/1", headers=asks).headers
            return found.get("access-control-allow-origin")

        own = prefect.api.removesuffix("/api")
        assert allowed(own) == own
        assert allowed("http://evil.example") is None
        assert allowed("http://127.0.0.1:1") is None
        assert allowed("null") is None

    def test_a_wrong_password_for_a_configured_server_is_reported(
        self, prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PREFECT_API_URL", prefect.api)
        for password, found in (("", "is not set"), ("pspnet:wrong", "is wrong")):
            monkeypatch.setenv("PREFECT_API_AUTH_STRING", password)
            with (
                replace(prefect, password=password).used(),
                pytest.raises(UserError, match=f"^PREFECT_API_AUTH_STRING: {found}; expected the password of http"),
            ):
                server.start_for_this_run(tmp_path)

    def test_a_configured_server_is_used(
        self, prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PREFECT_API_URL", prefect.api)
        with prefect.used():
            server.start_for_this_run(tmp_path)
        assert os.environ["PREFECT_API_URL"] == prefect.api
        assert list(tmp_path.iterdir()) == []


class TestPassword:
    def test_is_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        password = server.stored_password(tmp_path)
        assert server.stored_password(tmp_path) == password == (tmp_path / server.PASSWORD).read_text().strip()
        assert (tmp_path / server.PASSWORD).stat().st_mode & 0o777 == 0o600
        assert len(password) > 40

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
    def test_is_replaced_if_others_could_read_it(self, tmp_path: Path, mode: int) -> None:
        password = server.stored_password(tmp_path)
        (tmp_path / server.PASSWORD).chmod(mode)
        assert server.stored_password(tmp_path) != password
        assert (tmp_path / server.PASSWORD).stat().st_mode & 0o777 == 0o600

    def test_is_written_after_a_kill(self, tmp_path: Path) -> None:
        """This is true even if the partial file had different permissions."""
        (tmp_path / f"{server.PASSWORD}.partial").write_text("")
        assert server.stored_password(tmp_path)
        assert (tmp_path / server.PASSWORD).stat().st_mode & 0o777 == 0o600


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in environment(ROOT).items() if not name.startswith("PREFECT_")}
    given["PYTHONPATH"] += f"{os.pathsep}{folder}"
    try:
        return subprocess.run(
            [sys.executable, "-c", code, str(folder)], cwd=folder, env=given | {"COLUMNS": "200"}, timeout=600,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        kill_all(folder)


@pytest.mark.kills
def test_a_run_survives_the_kill_of_its_server(tmp_path: Path, prefects_tables: Path) -> None:
    copy_tables(prefects_tables, tmp_path / "prefect")
    done = python(KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Completed Completed\n"
    assert "Prefect's server was killed. Restarting it; the run continues." in done.stderr
    assert "EventsWorker" not in done.stderr


@pytest.mark.e2e
def test_a_server_that_keeps_ending_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "answering.py").write_text(ANSWERING)
    done = python(DOES_NOT_LIVE, tmp_path)
    assert done.returncode == 75
    assert done.stderr.count("Restarting it") == 1
    assert "Prefect's server keeps exiting." in done.stderr
    assert left(tmp_path) == []


@pytest.mark.e2e
def test_a_server_that_does_not_start_names_its_log(
    tmp_path: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", warm_python)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/prefect.db")
    with pytest.raises(UserError, match=r"did not start. The reason is in .*prefect-server\.log"):
        server.start(tmp_path, free_port(), server.new_password(), server.ONE_RUN)
    assert (tmp_path / "prefect-server.log").stat().st_size > 0


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    """Otherwise the password would be sent to any program that answers on the port."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="is used by another server"):
            server.start(tmp_path, other.server_port, server.new_password(), {})
        other.shutdown()
    assert list(tmp_path.iterdir()) == []
