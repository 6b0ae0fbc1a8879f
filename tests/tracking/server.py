"""A tracking server in its own process, which can be stopped and started again."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.network import free_port
from tests.waiting import wait_until

MLFLOW = Path(sys.executable).with_name("mlflow")


class Server:
    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._python = python
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        if self._process is not None:
            return
        command = [
            self._python, str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(self._port),
            "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db",
            "--artifacts-destination", f"{self._folder}/artifacts", "--workers", "1",
        ]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self._folder / "server.log").open("ab") as log:
            process = self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self._folder, start_new_session=True
            )
        wait_until(lambda: process.poll() is not None or answers(f"{self.uri}/health"), 180, otherwise=self._log)
        assert process.poll() is None, self._log()

    def _log(self) -> str:
        return (self._folder / "server.log").read_text()

    def stop(self) -> None:
        """Kill the server, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None
            wait_until(lambda: not answers(f"{self.uri}/health"))


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
