"""How it ends is told in tests/e2e/test_disturbed.py."""

import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flows import server
from pspnet.errors import UserError
from tests.network import free_port


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_a_person_has_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    server.start_for_this_run(tmp_path)
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_one_that_does_not_start_says_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/prefect.db")
    monkeypatch.setenv("PREFECT_API_URL", "")  # is put back afterwards
    with pytest.raises(UserError, match=r"does not start. .*prefect-server\.log says why"):
        server.start(tmp_path, free_port(), server.BRIEF)
    assert (tmp_path / "prefect-server.log").stat().st_size > 0


def test_a_port_that_is_taken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "")
    with HTTPServer(("127.0.0.1", 0), Healthy) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="has a server already"):
            server.start(tmp_path, other.server_port, {})
        other.shutdown()
    assert list(tmp_path.iterdir()) == []
