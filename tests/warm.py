"""A warm Python, which has torch, MLflow, DVC and Prefect loaded before it runs anything.

Loading these libraries takes longer than most tests. The fixture `warm_python` is a program that replaces
`sys.executable`: it passes its arguments, environment, folder and streams to a server, which forks a process with
these. The forked process has not loaded pspnet, so it imports the package from its own path, like any Python process.
If the program is killed, the forked process ends, along with everything that it started. The program exits with the
status of the forked process, in which `os.getppid()` returns the program's parent. `pspnet` and `dvc` are next to the
program.

Tests of startup itself, of signals and of process trees use `sys.executable`.

`python -P warm.py ADDRESS PROGRAM MODULE ...` starts the server, also loads the given modules in it, and returns.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

LOADED = (
    "albumentations", "cv2", "dvc.cli", "dvc.commands.add", "dvc.commands.repro", "dvc.repo.reproduce", "mlflow.models",
    "mlflow.pyfunc.scoring_server", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "pandas",
    "prefect.artifacts", "prefect.deployments", "prefect.server.api.server",
    "prefect.task_engine",  # prefect.flow_engine is not loaded, because it sets up logging
    "psutil", "pyarrow.dataset", "pyarrow.parquet", "pydantic", "rich.progress", "safetensors.torch", "torch",
    "torch._dynamo", "torch.utils.data", "typer", "uvicorn",
)  # fmt: skip
COMMANDS = {"pspnet": "pspnet.cli", "dvc": "dvc.cli"}  # command -> the module that contains its `main`
PROGRAM = """#!{python} -IS
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
forwarded = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
for number in forwarded:
    signal.signal(number, lambda number, _: server.send(bytes([number])))
status = int.from_bytes(server.recv(4), "big", signed=True)
if status < 0:
    for number in forwarded:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def start(folder: Path, *modules: str) -> None:
    """Start the server, with more modules loaded. The warm program is `python` in the folder."""
    address = str(folder / "socket")
    program = folder / "python"
    texts = {program: PROGRAM.format(python=sys.executable, address=address)}
    for command, module in COMMANDS.items():
        texts[folder / command] = f"#!{program}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
    for path, text in texts.items():
        path.write_text(text)
        path.chmod(0o755)
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-P", __file__, address, str(program), *modules],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    assert done.returncode == 0, (folder / "log").read_text()


def stop(folder: Path) -> None:
    os.kill(int((folder / "process").read_text()), signal.SIGTERM)
    (folder / "socket").unlink()


def main(address: str, program: str, *modules: str) -> None:
    for name in (*LOADED, *modules):
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    gc.freeze()  # otherwise each process would copy the shared memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the keepers to end
    if process := os.fork():
        Path("process").write_text(str(process))
        os._exit(0)
    os.setsid()
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            break
        client.close()
    request = _keep(client)
    status: object = 0
    try:
        _run(program, *request)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    _end(status)


def _keep(client: socket.socket) -> tuple[list[str], dict[str, str], str]:
    """Fork again. The parent stays here as the keeper of its child. Returns the request in the child."""
    program, *_ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    with client.makefile("rb") as file:
        request = json.loads(file.read(int.from_bytes(size, "big")))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (process := os.fork()) == 0:
        client.close()
        os.setsid()
        os.getppid = _parent_of(program)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        arguments, environment, folder = request
        return arguments, environment, folder
    for stream in streams:
        os.close(stream)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            with suppress(BrokenPipeError):  # the program was killed at the same time
                client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
            os._exit(0)
        if select.select([client], [], [], 0.01)[0]:
            if received := client.recv(1):
                os.kill(process, received[0])
            else:
                for kill in (os.killpg, os.kill):  # the process may not have a group yet
                    with suppress(ProcessLookupError):
                        kill(process, signal.SIGKILL)
                os._exit(0)


def _parent_of(program: int) -> Callable[[], int]:
    """Return a replacement for `os.getppid` in this process. It does not apply to processes that this process forks."""
    own, getppid = os.getpid(), os.getppid

    def parent() -> int:
        if os.getpid() == own:
            with suppress(OSError):  # the program has ended, so this process will also end
                return int(Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1])
        return getppid()

    return parent


class _PrefectSettings:
    """Reads Prefect's settings when they are first used. When Prefect was imported, it read the settings of the warm
    server.
    """

    def __getattr__(self, name: str) -> Any:
        prefect: Any = import_module("prefect.context")
        prefect.GLOBAL_SETTINGS_CONTEXT = None  # refreshing the settings checks this variable
        prefect.refresh_global_settings_context()
        return getattr(prefect.GLOBAL_SETTINGS_CONTEXT, name)


def _run(program: str, arguments: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.executable = program
    prefect: Any = import_module("prefect.context")
    prefect.GLOBAL_SETTINGS_CONTEXT = _PrefectSettings()
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    safe = arguments[0] == "-P"
    what, *rest = arguments[1:] if safe else arguments
    if what == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        sys.path[:0] = [] if safe else [""]
        module: Any = ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(code, "<string>", "exec"), module.__dict__)
    elif what == "-m":
        name, *rest = rest
        sys.argv = [name, *rest]
        sys.path[:0] = [] if safe else [folder]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [what, *rest]
        sys.path[:0] = [] if safe else [str(Path(what).resolve().parent)]
        runpy.run_path(what, run_name="__main__")


def _end(status: object) -> None:
    """End as Python does, but without tearing down the loaded modules, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # the stream may be closed
            stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main(*sys.argv[1:])
