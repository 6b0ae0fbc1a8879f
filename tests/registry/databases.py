"""The databases MLflow is used with, as the tests start them: SQLite in a file, PostgreSQL as a server of its own."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ACCOUNT = "postgres"  # its server refuses to be run by root


@contextmanager
def postgresql(name: str = "mlflow", driver: str = "pg8000") -> Iterator[str]:
    """The address of an empty database; skips where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with TemporaryDirectory(prefix="pspnet-postgresql-") as made:
        folder = Path(made)
        account = None
        if os.getuid() == 0:
            account = ACCOUNT
            shutil.chown(folder, ACCOUNT)
        port = free_port()

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), *arguments]
            with (folder / "call.log").open("ab") as log:
                subprocess.run(command, stdout=log, stderr=log, check=True, timeout=60, user=account, cwd=folder)

        call("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "pspnet", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/server.log", "-w", "start")
        try:
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "pspnet", name)
            yield f"postgresql+{driver}://pspnet@127.0.0.1:{port}/{name}"
        finally:
            call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")


def _programs() -> Path | None:
    if found := sorted(Path("/usr/lib/postgresql").glob("*/bin")):  # Debian keeps them off the PATH
        return found[-1]
    path = shutil.which("initdb")
    return Path(path).parent if path else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
