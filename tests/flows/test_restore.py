import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.stage.cache import StageCache

from flows import restore
from flows.failure import NOT_KNOWN
from pspnet.errors import EXIT_TEMPORARY

# DVC uses pygtrie in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    Repo.init(str(tmp_path)).close()
    (tmp_path / "dvc.yaml").write_text("stages: {first: {cmd: touch out, outs: [out]}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["restore", "first"])
    monkeypatch.setattr(restore, "die_with_parent", lambda number: None)
    return tmp_path


@pytest.mark.usefixtures("project")
def test_a_stage_that_has_never_run_is_unknown() -> None:
    assert restore.main() == NOT_KNOWN


@pytest.mark.usefixtures("project")
def test_a_file_that_vanishes_during_the_restore_leads_to_a_retry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def vanished(self: StageCache, stage: object, pull: bool) -> None:
        raise FileNotFoundError("reports/metrics.json")

    monkeypatch.setattr(StageCache, "restore", vanished)
    assert restore.main() == EXIT_TEMPORARY
    assert capsys.readouterr().err == "ERROR: reports/metrics.json\n"
