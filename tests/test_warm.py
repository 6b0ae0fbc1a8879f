"""What the warm Python must have of a Python that was started."""

import os
import subprocess

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


def test_its_parent_is_who_started_the_program(warm_python: str) -> None:
    done = subprocess.run([warm_python, "-c", PARENTS], capture_output=True, text=True, check=True)
    parent, of_its_child, itself = map(int, done.stdout.split())
    assert parent == os.getpid()
    assert of_its_child == itself
