"""A command that is called in the tests' process leaves that process unchanged."""

import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.command import call, pspnet


def state() -> list[object]:
    return [
        dict(os.environ), Path.cwd(), sys.argv, sys.stdout, sys.stderr, warnings.filters[:], logging.root.level,
        logging.root.handlers[:], signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
        torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled(),
        torch.initial_seed(), torch.get_rng_state().tolist(),
    ]  # fmt: skip


def change_everything() -> None:
    os.environ["PSPNET_STATE"] = "elsewhere"
    os.chdir("/")
    sys.argv = ["other"]
    warnings.simplefilter("error")
    logging.basicConfig(level=logging.DEBUG, force=True)
    torch.set_num_threads(3)
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(torch.initial_seed() + 1)
    torch.rand(1)


def test_call_restores_everything_that_a_command_changes(tmp_path: Path) -> None:
    before = state()
    assert call(change_everything, tmp_path).returncode == 0
    assert state() == before


def test_output_of_child_processes_is_captured_in_order(tmp_path: Path) -> None:
    def command() -> None:
        print("before")
        subprocess.run(["git", "--version"], check=True)
        print("after")
        print("wrong", file=sys.stderr)

    done = call(command, tmp_path)
    first, version, last = done.stdout.splitlines()
    assert (first, last, done.stderr) == ("before", "after", "wrong\n")
    assert version.startswith("git version ")


def test_a_logging_handler_of_an_earlier_call_writes_to_the_next(tmp_path: Path) -> None:
    logger = logging.getLogger("tests.test_command")
    logger.propagate = False
    call(lambda: logger.addHandler(logging.StreamHandler()), tmp_path)
    assert call(lambda: logger.warning("heard"), tmp_path).stderr == "heard\n"


def leave(status: object) -> None:
    raise SystemExit(status)


@pytest.mark.parametrize(("status", "returncode", "stderr"), [(None, 0, ""), (3, 3, ""), ("a word", 1, "a word\n")])
def test_the_exit_status_is_the_same_as_in_a_process(
    tmp_path: Path, status: object, returncode: int, stderr: str
) -> None:
    done = call(lambda: leave(status), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (returncode, "", stderr)


def test_an_exception_gives_a_traceback_and_status_1(tmp_path: Path) -> None:
    done = call(lambda: 1 / 0, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_command_gets_its_folder_and_its_environment(tmp_path: Path) -> None:
    pspnet("synthesize", "raw", "--images", "1", "--labeled", "1", cwd=tmp_path)
    assert (tmp_path / "raw").is_dir()
    done = call(lambda: print(Path.cwd(), os.environ["A"]), tmp_path, environment={"A": "b"})
    assert done.stdout == f"{tmp_path} b\n"
