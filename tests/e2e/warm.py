"""`pspnet` and `dvc` as processes that start at once: forked by a server that has loaded torch, MLflow and DVC.

The server loads none of our modules: a command runs the code of its own checkout. Its parent is the server, so a test
of kills, signals or parents needs the real commands.
"""

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import filelock

COMMANDS = {"pspnet": "pspnet.cli", "dvc": "dvc.cli"}  # the module of its `main`
LOADED = (
    "PIL.Image", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "albumentations", "alembic.command", "configobj", "cv2",
    "dulwich.client", "dulwich.repo", "dvc.cli.parser", "dvc.repo", "dvc.repo.reproduce", "dvc.repo.status",
    "dvc_data.hashfile.db.local", "dvc_data.hashfile.status", "flufl.lock", "jinja2", "mlflow.models", "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_workspace_store", "mlflow.store.tracking.sqlalchemy_workspace_store",
    "mlflow.tracking", "networkx", "pandas", "psutil", "pyarrow.dataset", "pyarrow.parquet", "pydantic",
    "rich.progress", "ruamel.yaml", "safetensors.torch", "scipy.ndimage", "sqlalchemy.dialects.sqlite", "sqltrie",
    "torch", "torch._dynamo", "torch.utils.data", "typer",
)  # fmt: skip
# Stands in for a command on the PATH: hands over arguments, folder, environment and streams, and ends with the command.
STAND_IN = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
facts = json.dumps([{command!r}, sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(facts).to_bytes(4, "big")], [0, 1, 2])
server.sendall(facts)
child = int.from_bytes(server.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(child, number))
os._exit(int.from_bytes(server.recv(4), "big"))
"""


@contextmanager
def served(folder: Path) -> Iterator[Path]:
    """The folder of the stand-ins. Pytest's processes share one server, which ends with the last of them."""
    folder.mkdir(parents=True, exist_ok=True)
    address, log = str(folder / "socket"), folder / "log"
    with filelock.FileLock(folder / "lock"):
        lease = _connected(address)
        if lease is None:
            Path(address).unlink(missing_ok=True)
            with log.open("ab") as output:
                server = [sys.executable, "-m", "tests.e2e.warm", address]
                ended = subprocess.run(server, stdout=output, stderr=output, check=False)
            lease = _connected(address)
            assert lease, f"{log.read_text()}ended with {ended.returncode}"
        for command in COMMANDS:
            stand_in = folder / "bin" / command
            stand_in.parent.mkdir(exist_ok=True)
            stand_in.write_text(STAND_IN.format(python=sys.executable, address=address, command=command))
            stand_in.chmod(0o755)
    with lease:
        yield folder / "bin"


def _connected(address: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        return None
    return connection


def serve(address: str) -> None:
    for module in LOADED:
        import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    if os.fork():
        return  # ready: the starter waits no longer
    os.setsid()
    running: dict[int, socket.socket] = {}  # child -> its stand-in
    with selectors.DefaultSelector() as connections:
        connections.register(listener, selectors.EVENT_READ)
        leased = False
        while not leased or len(connections.get_map()) > 1:
            for key, _ in connections.select(0.02 if running else None):
                if key.fileobj is listener:
                    connections.register(listener.accept()[0], selectors.EVENT_READ)
                    leased = True
                    continue
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                header, streams, _, _ = socket.recv_fds(connection, 4, 3)
                if header:
                    running[_forked(connection, header, streams)] = connection
                    continue
                connections.unregister(connection)
                connection.close()
                for child in [child for child, stand_in in running.items() if stand_in is connection]:
                    os.kill(child, signal.SIGKILL)
            _tell_ended(running)


def _tell_ended(running: dict[int, socket.socket]) -> None:
    for child, stand_in in list(running.items()):
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            del running[child]
            ended = os.waitstatus_to_exitcode(status)
            with suppress(OSError):  # it was killed
                stand_in.sendall((ended if ended >= 0 else 128 - ended).to_bytes(4, "big"))


def _forked(connection: socket.socket, header: bytes, streams: list[int]) -> int:
    facts = b""
    while len(facts) < int.from_bytes(header, "big") and (more := connection.recv(1 << 16)):
        facts += more
    child = os.fork()
    if child == 0:
        command, arguments, folder, environment = json.loads(facts)
        _become(command, arguments, folder, environment, streams)
    for stream in streams:
        os.close(stream)
    with suppress(OSError):
        connection.sendall(child.to_bytes(4, "big"))
    return child


def _become(
    command: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> NoReturn:
    status: object = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments
        sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
        status = import_module(COMMANDS[command]).main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
