"""`pspnet serve` without the registry."""

import signal
import socket
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from pspnet.errors import UserError
from pspnet.serving.process import serve
from tests.flows.processes import left_of
from tests.raw.rawdata import encoded, noise
from tests.serving.processes import port_of, post, predicted, process, split

SERVE = """
import os, sys
from pathlib import Path
import typer
from pspnet.serving.process import serve
version, port, sys.executable = sys.argv[1:]
Path("process").write_text(str(os.getpid()))
try:
    serve(Path(version), "models:/x/3", "127.0.0.1", int(port))
except typer.Exit as exit:
    sys.exit(exit.exit_code)
"""


def command(warm_python: str, version: Path, port: int = 0, python: str | None = None) -> list[object]:
    """Return a command whose server is run by `python`."""
    return [warm_python, "-c", SERVE, version, port, python or warm_python]


def command_and_server(folder: Path) -> tuple[psutil.Process, psutil.Process]:
    command = psutil.Process(int((folder / "process").read_text()))
    [server] = command.children()
    return command, server


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_uses_only_the_versions_code_and_stops_with_the_command(
    version: Path, bundle: Path, newer_checkout: Path, warm_python: str, tmp_path: Path, number: signal.Signals
) -> None:
    settings = {
        "PYTHONPATH": str(newer_checkout),
        "MLFLOW_PYFUNC_INFERENCE_CONFIG": '{"max_images": 1}',
        "PSPNET_SERVE_TOKEN": "s3cret",
    }
    token = {"authorization": "Bearer s3cret"}
    python = sys.executable if number == signal.SIGTERM else warm_python
    with process(command(warm_python, version, python=python), tmp_path, **settings) as started:
        port = port_of(started, tmp_path)
        image = noise(30, 50)
        assert np.array_equal(post(port, split(encoded(image)), headers=token).mask(), predicted(bundle, image))
        assert "expected at most 1 (serve.max_images)" in post(port, split(b"", b""), headers=token).message
        assert post(port, split(encoded(image))).status == 401
        command_, server = command_and_server(tmp_path)
        command_.send_signal(number)
        assert started.wait(60) == 0
        assert left_of([server]) == []
    assert (tmp_path / "log").read_text() == f"models:/x/3 on http://127.0.0.1:{port}, Ctrl-C stops it\n"


@pytest.mark.e2e
def test_the_server_ends_when_the_command_is_killed(version: Path, warm_python: str, tmp_path: Path) -> None:
    with process(command(warm_python, version), tmp_path) as started:
        port_of(started, tmp_path)
        command_, server = command_and_server(tmp_path)
        command_.kill()
        _, alive = psutil.wait_procs([server], timeout=60)
        assert not alive


@pytest.mark.e2e
def test_the_command_exits_with_its_servers_status(version: Path, warm_python: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with process(command(warm_python, version, port), tmp_path) as started:
            assert started.wait(120) == 1
    assert f"127.0.0.1:{port}: cannot listen there" in (tmp_path / "log").read_text()


def test_a_folder_that_is_not_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        serve(tmp_path, "models:/x/3", "127.0.0.1", 5001)
    assert str(error.value) == f"{tmp_path}: contains no MLmodel; expected the folder of a registered version"
