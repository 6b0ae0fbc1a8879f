import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest
import torch

from pspnet.errors import Busy
from pspnet.process import exclusive_on_machine
from pspnet.training import runtime
from tests.forked import FORKED

NOBODY = 65534


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU that this machine need not have."""
    properties = type("Properties", (), {"uuid": uuid.uuid4()})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return torch.device("cuda:0")


def test_the_lock_of_a_gpu_leaves_nothing_behind(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with runtime.device_lock(gpu):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_gpu_that_one_user_has_used_is_free_for_another(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o1777)  # as /tmp
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with runtime.device_lock(gpu):
        pass
    os.seteuid(NOBODY)
    try:
        with runtime.device_lock(gpu):
            pass
    finally:
        os.seteuid(0)


def test_two_processes_do_not_hold_one_name_and_nobody_is_told_to_remove_it() -> None:
    name = f"pspnet-test-{uuid.uuid4()}"
    with exclusive_on_machine(name, "this GPU"):
        with pytest.raises(Busy) as error, exclusive_on_machine(name, "this GPU", seconds=0):
            pass
        assert str(error.value) == "Another process is using this GPU. Wait for it or stop it, then try again."
    with exclusive_on_machine(name, "this GPU", seconds=0):
        pass


def hold(name: str, held: object) -> None:
    with exclusive_on_machine(name, "it"):
        held.set()  # type: ignore[attr-defined]
        signal.pause()


@pytest.mark.e2e
def test_a_killed_holder_holds_it_no_longer() -> None:
    name, held = f"pspnet-test-{uuid.uuid4()}", FORKED.Event()
    process = FORKED.Process(target=hold, args=(name, held))
    process.start()
    assert held.wait(120)
    with pytest.raises(Busy), exclusive_on_machine(name, "it", seconds=0):
        pass
    process.kill()
    process.join()
    with exclusive_on_machine(name, "it", seconds=60):
        pass
