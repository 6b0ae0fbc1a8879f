import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest
import torch

from pspnet.errors import Busy
from pspnet.machine.process import exclusive_on_machine
from pspnet.training.shared import runtime
from tests.forked import FORKED

NOBODY = 65534


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A fake GPU, because this machine may not have one."""
    properties = type("Properties", (), {"uuid": uuid.uuid4()})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return torch.device("cuda:0")


def test_a_gpu_lock_leaves_no_file(gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with runtime.device_lock(gpu):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_gpu_used_by_one_user_is_free_for_another(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o1777)  # the same permissions as /tmp
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with runtime.device_lock(gpu):
        pass
    os.seteuid(NOBODY)
    try:
        with runtime.device_lock(gpu):
            pass
    finally:
        os.seteuid(0)


def test_only_one_process_can_hold_a_name_and_the_message_names_no_file() -> None:
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
def test_a_kill_releases_the_lock() -> None:
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
