"""Databases for MLflow: SQLite in a file, PostgreSQL as a separate server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, text

from tests.network import free_port

ACCOUNT = "postgres"  # PostgreSQL's server refuses to run as root
USER = "pspnet"
FOLDER, PORT = "postgresql", "port"  # files that contain the server's folder and port


@contextmanager
def postgresql(name: str = "mlflow", driver: str = "pg8000") -> Iterator[str]:
    """Yield the address of an empty database on a new server; skip where PostgreSQL is not installed."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        start(folder)
        try:
            create(folder, name)
            yield address(folder, name, driver)
        finally:
            stop(folder)


def start(folder: Path) -> None:
    """Start a PostgreSQL server, and write its address to `folder`."""
    if _programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # The account cannot read every folder, so the server gets this one.
    own = Path(tempfile.mkdtemp(prefix="pspnet-postgresql-"))
    if os.getuid() == 0:
        shutil.chown(own, ACCOUNT)
    port = free_port()
    _call(own, "initdb", "-D", f"{own}/data", "-A", "trust", "-U", USER, "--no-sync")
    options = f"-p {port} -k {own} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
    _call(own, "pg_ctl", "-D", f"{own}/data", "-o", options, "-l", f"{own}/server.log", "-w", "start")
    (folder / FOLDER).write_text(str(own))
    (folder / PORT).write_text(str(port))


def stop(folder: Path) -> None:
    own = Path((folder / FOLDER).read_text())
    _call(own, "pg_ctl", "-D", f"{own}/data", "-m", "immediate", "stop")
    shutil.rmtree(own)


def create(folder: Path, name: str, template: str = "template1") -> None:
    """Create a database as a copy of `template`."""
    engine = create_engine(address(folder, "postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        # PostgreSQL copies a database only while nobody is connected to it.
        others = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(others, {"name": template})
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))


def prepare(uri: str) -> None:
    """Let MLflow create its tables, which takes a second."""
    from mlflow.tracking import MlflowClient

    MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)


def copy(folder: Path, template: str) -> str:
    """Return the address of a new copy of a database."""
    name = f"copy_{uuid4().hex}"
    create(folder, name, template)
    return address(folder, name)


def address(folder: Path, name: str, driver: str = "pg8000") -> str:
    return f"postgresql+{driver}://{USER}@127.0.0.1:{(folder / PORT).read_text()}/{name}"


def _programs() -> Path | None:
    # Debian does not put PostgreSQL's programs on the PATH.
    if found := sorted(Path("/usr/lib/postgresql").glob("*/bin")):
        return found[-1]
    path = shutil.which("initdb")
    return Path(path).parent if path else None


def _call(folder: Path, program: str, *arguments: str) -> None:
    programs = _programs()
    assert programs
    account = ACCOUNT if os.getuid() == 0 else None
    with (folder / "call.log").open("ab") as log:
        subprocess.run(
            [programs / program, *arguments], stdout=log, stderr=log, check=True, timeout=60, user=account, cwd=folder
        )
