"""A complete run against a server with a password in its address; the password must not appear anywhere else."""

import stat
from pathlib import Path

import pytest

from tests.e2e.pipeline import commit, run, warmed
from tests.machine.test_credentials import SECRET, holding_it
from tests.tracking.server import Server

pytestmark = pytest.mark.e2e


def test_no_password_reaches_a_run_a_version_a_log_or_a_state_file(
    finished: Path, tmp_path: Path, stand_ins: Path, warm_python: str
) -> None:
    server = Server(tmp_path / "server", warm_python)
    server.start()
    try:
        address = server.uri.replace("://", f"://bob:{SECRET}@")
        settings = warmed(stand_ins) | {"MLFLOW_TRACKING_URI": address, "PSPNET_TRACKING": "on"}
        settings |= {"PSPNET_FLOW_RUN_PAGE": f"http://bob:{SECRET}@prefect/runs/1"}
        (finished / "data/raw.dvc").write_text(
            (finished / "data/raw.dvc").read_text() + f"desc: from http://bob:{SECRET}@host/set\n"
        )
        commit(finished, "--all")
        said = run(finished, "dvc", "repro", "--force", "--single-item", "evaluate", **settings)
        for words in ("register --promote", "runs", "models", "models history", "lineage champion", "promote 1"):
            said += run(finished, "pspnet", *words.split(), **settings)
    finally:
        server.stop()
    assert "version 1" in said
    assert SECRET not in said
    assert holding_it(tmp_path / "server") == []
    assert holding_it(finished, "data/raw.dvc", "tests/machine/test_credentials.py") == []
    state = finished / ".pspnet"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    logs = [*state.rglob("sender.log"), *state.rglob("*.jsonl")]
    assert len(logs) >= 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in logs} == {0o600}
