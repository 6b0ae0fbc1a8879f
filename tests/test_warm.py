"""Properties that a warm Python shares with a newly started Python."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

PARENTS = """
import os
print(os.getppid(), flush=True)
if os.fork() == 0:
    print(os.getppid(), flush=True)
    os._exit(0)
os.wait()
print(os.getpid())
"""
SETTINGS = """
import os, sys
os.environ["PREFECT_HOME"] = os.getcwd()
from prefect.settings import PREFECT_HOME
print(PREFECT_HOME.value(), "prefect.main" in sys.modules)
"""


def test_the_parent_of_a_warm_python_is_its_caller(warm_python: str) -> None:
    done = subprocess.run([warm_python, "-c", PARENTS], capture_output=True, text=True, check=True)
    parent, of_its_child, itself = map(int, done.stdout.split())
    assert parent == os.getpid()
    assert of_its_child == itself


def test_prefect_has_the_settings_that_a_program_changes_before_it_uses_prefect(
    warm_python: str, tmp_path: Path
) -> None:
    """`prefect.main` sets up logging with the settings at that moment."""
    done = subprocess.run([warm_python, "-c", SETTINGS], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path} False\n"
