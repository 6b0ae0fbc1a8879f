"""Passwords and tokens in addresses never reach an output, a log, an artifact or a registry."""

import shlex
import shutil
import stat
from pathlib import Path

import pytest

from pspnet.machine.credentials import hidden, hide_in_output
from pspnet.machine.events import new_log
from pspnet.machine.outputs import private_file
from pspnet.registry import provenance
from pspnet.tracking.journal import Journal
from tests.cli.test_commands import COMMANDS
from tests.command import call, pspnet, pspnet_process
from tests.network import free_port
from tests.parameters import ROOT
from tests.repository import commit, new_repository

SECRET = "S3CRET"
PREFECTS = ("deploy", "retrain", "schedule", "worker")  # Prefect reads addresses only once, when it is loaded
PROCESSES = ("accept", "data add", "doctor", "predict", "reproduce", "serve", "synthesize", "weights import")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://bob:S3CRET@host:5000/api", "http://bob:***@host:5000/api"),
        ("http://S3CRET@host/api", "http://***@host/api"),
        ("postgresql://bob:S3/C@RET@host/db", "postgresql://bob:***@host/db"),
        ("s3://bucket?X-Amz-Signature=S3CRET&a=b", "s3://bucket?X-Amz-Signature=***&a=b"),
        ("https://host/c?sv=1&sig=S3CRET", "https://host/c?sv=1&sig=***"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ('{"a": "http://b:S3CRET@h", "c": "d@e"}', '{"a": "http://b:***@h", "c": "d@e"}'),
        ("bob@example.org, at 10:30@home", "bob@example.org, at 10:30@home"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
    ],
)
def test_credentials_in_addresses_are_hidden(address: str, shown: str) -> None:
    assert hidden(address) == shown


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    new_repository(folder, f"    remote = team\n['remote \"team\"']\n    url = http://bob:{SECRET}@127.0.0.1:9/dvc\n")
    for name in ("dvc.yaml", "params.yaml", "requirements.lock", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "data").mkdir()
    (folder / "data/raw.dvc").write_text(
        f"frozen: true\ndeps:\n- path: http://bob:{SECRET}@127.0.0.1:9/raw\nouts:\n- md5: {'0' * 32}.dir\n  path: raw\n"
    )
    commit(folder, "all")
    return folder


def addresses() -> dict[str, str]:
    server = f"http://bob:{SECRET}@127.0.0.1:{free_port()}"
    return {"MLFLOW_TRACKING_URI": server, "PREFECT_API_URL": f"{server}/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}


def holding_it(folder: Path, *but: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    found = [str(path.relative_to(folder)) for path in files if SECRET.encode() in path.read_bytes()]
    return sorted(path for path in found if not path.endswith(but))


def example(name: str) -> list[str]:
    text = " ".join((COMMANDS[name].help or "").split())
    return shlex.split(text.partition("Example: ")[2])[1:]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.e2e] if name in PREFECTS + PROCESSES else []) for name in COMMANDS]
)
def test_no_command_shows_a_password(name: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    if name in PREFECTS:
        done = pspnet_process(*example(name), cwd=checkout, **addresses())
    elif name in PROCESSES:
        program = f"{request.getfixturevalue('stand_ins')}/pspnet"
        done = pspnet_process(*example(name), cwd=checkout, program=program, **addresses())
    else:
        done = pspnet(*example(name), cwd=checkout, **addresses())
    assert SECRET not in done.stdout + done.stderr
    assert holding_it(checkout, ".dvc/config", "data/raw.dvc") == []


def test_a_failed_connection_is_reported_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ConnectionError(f"API request to http://bob:{SECRET}@host/api failed")

    monkeypatch.setattr("pspnet.cli.app", lambda **_: fails())
    done = pspnet(cwd=tmp_path)
    assert "API request to http://bob:***@host/api failed" in done.stderr
    assert done.returncode == 75


def test_a_traceback_shows_no_password(tmp_path: Path) -> None:
    def fails() -> None:
        hide_in_output()
        raise ValueError(f"http://bob:{SECRET}@host")

    done = call(fails, tmp_path)
    assert "http://bob:***@host" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    "words",
    [("--import-url", f"https://{SECRET}@host/set"), ("--import", f"https://bob:{SECRET}@host/data.git", "raw")],
    ids=["url", "repository"],
)
def test_an_import_with_a_password_in_its_address_is_refused(words: tuple[str, ...], checkout: Path) -> None:
    (checkout / "data/raw.dvc").unlink()
    done = pspnet("data", "add", *words, cwd=checkout)
    assert done.returncode == 1
    assert "contains a password or a token; expected an address without one." in done.stderr
    assert SECRET not in done.stderr
    assert not (checkout / "data/raw.dvc").exists()


def test_a_version_keeps_no_password_of_an_import(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PSPNET_FLOW_RUN_PAGE", f"http://bob:{SECRET}@prefect/run")
    (checkout / ".dvc/config").write_text((checkout / ".dvc/config").read_text() + "# changed\n")
    tags = provenance.collect(tmp_path / "kept", [Path("data/raw.dvc")], Path("reports/runs"))
    assert "http://bob:***@127.0.0.1:9/raw" in (tmp_path / "kept/data/raw.dvc").read_text()
    assert (tmp_path / "kept/dvc.yaml").read_bytes() == (checkout / "dvc.yaml").read_bytes()
    assert holding_it(tmp_path / "kept") == []
    assert SECRET not in str(tags)


def test_journals_and_logs_are_readable_only_by_their_owner(tmp_path: Path) -> None:
    with open(tmp_path / "server.log", "ab", opener=private_file):
        pass
    journal = Journal(tmp_path / "journal", new_log(tmp_path), experiment="e", started=0)
    journal.add("end", attempt=1, status="FAILED", message=f"http://bob:{SECRET}@host is away")
    written = (tmp_path / "journal/journal.jsonl", journal.log, tmp_path / "server.log")
    assert [stat.S_IMODE(path.stat().st_mode) for path in written] == [0o600] * 3
    assert "***" in journal.log.read_text()
    assert SECRET not in journal.log.read_text()
