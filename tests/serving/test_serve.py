"""`pspnet serve` without the registry: the server as the command starts it."""

import signal
import socket
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from pspnet.commands.serve import serve
from pspnet.errors import UserError
from tests.dataset.rawdata import encoded, noise
from tests.flows.processes import left_of
from tests.serving.processes import Process, port_told, post, predicted, process, split

SERVE = """
import sys
from pathlib import Path
import typer
from pspnet.commands.serve import serve
try:
    serve(Path(sys.argv[1]), "models:/x/3", "127.0.0.1", int(sys.argv[2]))
except typer.Exit as exit:
    sys.exit(exit.exit_code)
"""


def command(version: Path, port: int = 0) -> list[object]:
    return [sys.executable, "-c", SERVE, version, str(port)]


def of(started: Process) -> psutil.Process:
    [server] = psutil.Process(started.pid).children()
    return server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_knows_only_the_versions_code_and_stops_with_the_command(
    version: Path, bundle: Path, newer_checkout: Path, tmp_path: Path, number: signal.Signals
) -> None:
    settings = {"PYTHONPATH": str(newer_checkout), "MLFLOW_PYFUNC_INFERENCE_CONFIG": '{"max_images": 1}'}
    with process(command(version), tmp_path, **settings) as started:
        port = port_told(started, tmp_path)
        image = noise(30, 50)
        assert np.array_equal(post(port, split(encoded(image))).mask(), predicted(bundle, image))
        assert "expected at most 1 (serve.max_images)" in post(port, split(b"", b"")).message
        server = of(started)
        started.send_signal(number)
        assert started.wait(20) == 0
        assert left_of([server]) == []
    assert (tmp_path / "log").read_text() == f"models:/x/3 on http://127.0.0.1:{port}, Ctrl-C stops it\n"


def test_the_server_ends_when_the_command_is_killed(version: Path, tmp_path: Path) -> None:
    with process(command(version), tmp_path) as started:
        port_told(started, tmp_path)
        server = of(started)
        started.kill()
        _, alive = psutil.wait_procs([server], timeout=20)
        assert not alive


def test_the_command_ends_as_its_server_ends(version: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with process(command(version, port), tmp_path) as started:
            assert started.wait(60) == 1
    assert f"127.0.0.1:{port}: cannot be listened on" in (tmp_path / "log").read_text()


def test_a_folder_that_is_no_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        serve(tmp_path, "models:/x/3", "127.0.0.1", 5001)
    assert str(error.value) == f"{tmp_path}: holds no MLmodel; expected the folder of a registered version"
