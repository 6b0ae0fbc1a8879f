"""Tests the guard that keeps processes out of `make test`, and the tests of each tier. See docs/testing.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parameters import ROOT


def test_a_test_without_a_marker_starts_no_process() -> None:
    with pytest.raises(RuntimeError, match="mark the test e2e"):
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_a_test_may_run_git(tmp_path: Path) -> None:
    assert subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True).returncode == 0


@pytest.mark.e2e
def test_a_marked_test_may_start_a_process() -> None:
    assert subprocess.run([sys.executable, "-S", "-c", ""], check=True).returncode == 0


def test_make_test_kills_covers_every_folder_with_kills() -> None:
    """The target lists folders, so that pytest does not load all other tests."""
    (command,) = re.findall(r"\$\(TESTS\) (.*) -m kills ", (ROOT / "Makefile").read_text())
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark" + ".kills" in path.read_text()]
    assert files
    folders = {path.relative_to(ROOT).parts[:2] for path in files}
    assert folders == {Path(folder).parts for folder in command.split()}
