"""Who gets in, and that a run goes on when its server is killed. Its end is told in tests/e2e/test_disturbed.py."""

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

from flows import server
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
from pspnet.offline import go_offline, prefect_here
go_offline()
state = Path(sys.argv[1])
prefect_here(state)
from flows import server
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
from flows import server
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
class TestWhoGetsIn:
    def wanted(self, prefect: PrefectServer, **options: Any) -> int:
        """What a patched `pull_steps` needs: the deployments."""
        return httpx.post(f"{prefect.api}/deployments/filter", json={}, **options).status_code

    def test_only_the_one_with_the_password(self, prefect: PrefectServer) -> None:
        assert self.wanted(prefect) == 401
        assert self.wanted(prefect, auth=("pspnet", "")) == 401
        assert self.wanted(prefect, auth=("pspnet", "x" * 43)) == 401
        name, _, word = prefect.password.partition(":")
        assert self.wanted(prefect, auth=(name, word)) == 200

    @pytest.mark.parametrize("subprotocols", [None, [Subprotocol("prefect")]], ids=["old", "prefect"])
    def test_the_stream_of_events_wants_it_too(
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

    def test_another_sites_page_is_not_answered(self, prefect: PrefectServer) -> None:
        def allowed(origin: str) -> Any:
            asks = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
            found = httpx.options(f"{prefect.api}/deployments/1", headers=asks).headers
            return found.get("access-control-allow-origin")

        own = prefect.api.removesuffix("/api")
        assert allowed(own) == own
        assert allowed("http://evil.example") is None
        assert allowed("http://127.0.0.1:1") is None
        assert allowed("null") is None

    def test_a_named_server_without_its_password_is_told(
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

    def test_a_server_that_a_person_has_named_is_used(
        self, prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PREFECT_API_URL", prefect.api)
        with prefect.used():
            server.start_for_this_run(tmp_path)
        assert os.environ["PREFECT_API_URL"] == prefect.api
        assert list(tmp_path.iterdir()) == []


class TestPassword:
    def test_is_kept_for_its_owner_alone(self, tmp_path: Path) -> None:
        password = server.kept_password(tmp_path)
        assert server.kept_password(tmp_path) == password == (tmp_path / server.PASSWORD).read_text().strip()
        assert (tmp_path / server.PASSWORD).stat().st_mode & 0o777 == 0o600
        assert len(password) > 40

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
    def test_that_others_could_read_is_another_one_now(self, tmp_path: Path, mode: int) -> None:
        password = server.kept_password(tmp_path)
        (tmp_path / server.PASSWORD).chmod(mode)
        assert server.kept_password(tmp_path) != password
        assert (tmp_path / server.PASSWORD).stat().st_mode & 0o777 == 0o600

    def test_that_was_not_written_is_written(self, tmp_path: Path) -> None:
        """Killed meanwhile, with whatever rights the file had."""
        (tmp_path / f"{server.PASSWORD}.partial").write_text("")
        assert server.kept_password(tmp_path)
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
def test_a_run_whose_server_is_killed_alone_goes_on_and_ends_as_it_should(
    tmp_path: Path, prefects_tables: Path
) -> None:
    copy_tables(prefects_tables, tmp_path / "prefect")
    done = python(KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Completed Completed\n"
    assert "Prefect's server was killed. It is started again; the run goes on." in done.stderr
    assert "EventsWorker" not in done.stderr


@pytest.mark.e2e
def test_a_server_that_will_not_live_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "answering.py").write_text(ANSWERING)
    done = python(DOES_NOT_LIVE, tmp_path)
    assert done.returncode == 75
    assert done.stderr.count("It is started again") == 1
    assert "Prefect's server ends again and again." in done.stderr
    assert left(tmp_path) == []


@pytest.mark.e2e
def test_one_that_does_not_start_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/prefect.db")
    with pytest.raises(UserError, match=r"does not start. .*prefect-server\.log says why"):
        server.start(tmp_path, free_port(), server.new_password(), server.BRIEF)
    assert (tmp_path / "prefect-server.log").stat().st_size > 0


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    """Whatever answers there would be told the password."""
    with HTTPServer(("127.0.0.1", 0), Healthy) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="has a server already"):
            server.start(tmp_path, other.server_port, server.new_password(), {})
        other.shutdown()
    assert list(tmp_path.iterdir()) == []
