"""`pspnet serve`: serves a version over HTTP, from a separate process in which the only pspnet is the version's."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import typer

from pspnet.errors import Problem, UserError
from pspnet.serving.client import own_code_environment

TOKEN = "PSPNET_SERVE_TOKEN"  # noqa: S105  the name of a variable
SERVER = Path(__file__).with_name("server.py")


def serve(model_folder: Path, title: str, host: str, port: int) -> None:
    """Serve a version until this process is stopped."""
    if not (model_folder / "MLmodel").is_file():
        raise UserError(Problem(str(model_folder), "contains no MLmodel", "the folder of a registered version"))
    command = [sys.executable, "-P", str(SERVER), "--until-stdin-ends", "--model", str(model_folder.resolve()),
               "--title", title, "--host", host, "--port", str(port)]  # fmt: skip
    # The token is the only secret that the server gets. The server removes it before it loads the version.
    token = {TOKEN: os.environ[TOKEN]} if TOKEN in os.environ else {}
    # Our end of the pipe closes when this process exits, for whatever reason.
    with subprocess.Popen(command, env={**own_code_environment(), **token}, stdin=subprocess.PIPE) as server:

        def stop(number: int, frame: FrameType | None) -> None:
            # The terminal sends Ctrl-C to the server too. A second SIGINT would make the server drop active requests.
            server.terminate()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = server.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if status:
        raise typer.Exit(status if status > 0 else 128 - status)
