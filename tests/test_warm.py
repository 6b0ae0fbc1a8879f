"""Properties that a warm Python shares with a newly started one."""

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


def test_the_parent_of_a_warm_python_is_its_caller(warm_python: str) -> None:
    done = subprocess.run([warm_python, "-c", PARENTS], capture_output=True, text=True, check=True)
    parent, of_its_child, itself = map(int, done.stdout.split())
    assert parent == os.getpid()
    assert of_its_child == itself
