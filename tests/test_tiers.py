"""The guard that keeps processes out of `make test`; see docs/testing.md."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_a_test_without_a_marker_starts_no_process() -> None:
    with pytest.raises(RuntimeError, match="mark the test e2e"):
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_git_may_run(tmp_path: Path) -> None:
    assert subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True).returncode == 0


@pytest.mark.e2e
def test_a_marked_test_may_start_one() -> None:
    assert subprocess.run([sys.executable, "-S", "-c", ""], check=True).returncode == 0
