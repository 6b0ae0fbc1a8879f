import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import user_error_for, whole_file, whole_folder
from pspnet.training.shared.checkpoint import Checkpoint, TrainingState
from pspnet.training.shared.optimizer import build_optimizer
from tests.command import pspnet
from tests.limits import files_up_to
from tests.parameters import demo_params


def test_a_folder_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    before_rename: list[set[str]] = []
    fsync, rename = os.fsync, os.rename

    def note(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def look(source: Path, target: Path) -> None:
        before_rename.append({*synced})
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", look)
    with whole_folder(tmp_path / "out") as folder:
        (folder / "deep").mkdir()
        (folder / "deep/file").write_text("content")
        (folder / "link").symlink_to("nowhere")
    partial = tmp_path / "out.partial"
    assert before_rename == [{str(partial), str(partial / "deep"), str(partial / "deep/file")}]
    assert str(tmp_path) in synced, "the new name may be lost"


def test_a_checkpoint_that_does_not_fit_is_reported_with_its_folder_and_the_space_it_needs(tmp_path: Path) -> None:
    module = nn.Linear(500, 500)
    state = TrainingState(module, build_optimizer(demo_params().finetune.optimizer, [(module.parameters(), 1.0)]))
    checkpoint = Checkpoint(tmp_path / "finetune-1")
    checkpoint.save(state)
    kept = (tmp_path / "finetune-1/state.safetensors").read_bytes()
    nn.init.zeros_(module.weight)
    with files_up_to(1000), pytest.raises(UserError) as error:
        checkpoint.save(state)
    assert re.fullmatch(
        re.escape(f"{tmp_path}/finetune-1: has no room for state.safetensors (File too large; ")
        + r"[\d,.]+ [GM]B free\); expected about 1\.0 MB of free space\. "
        r"Free some space there, then run the same command again\.",
        str(error.value),
    )
    assert (tmp_path / "finetune-1/state.safetensors").read_bytes() == kept
    assert torch.count_nonzero(module.weight) == 0
    assert [path.name for path in (tmp_path / "finetune-1").iterdir()] == ["state.safetensors"]


def test_outputs_that_do_not_fit_are_reported_and_leave_nothing(tmp_path: Path) -> None:
    with files_up_to(10), pytest.raises(UserError, match="has no room for out"), whole_folder(tmp_path / "out") as out:
        (out / "file").write_bytes(b"x" * 100)
    with (
        files_up_to(10),
        pytest.raises(UserError, match=r"has no room for a\.json"),
        whole_file(tmp_path / "a.json") as a,
    ):
        a.write_bytes(b"x" * 100)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_leads_to_a_message(tmp_path: Path) -> None:
    done = pspnet("synthesize", "/sys/drawn", "--images", "1", "--labeled", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("/sys/drawn.partial: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.EROFS,
            "cannot be written (Read-only file system). Work in a checkout on a disk that is not mounted read-only.",
        ),
        (
            errno.ENOSPC,
            "has no room (No space left on device). Free some space there, then run the same command again.",
        ),
        (
            errno.EACCES,
            (
                "cannot be used by this user (Permission denied). "
                "Work in your own checkout, or have its owner give access."
            ),
        ),
    ],
)
def test_system_errors_that_a_user_can_fix_lead_to_a_message(number: int, message: str) -> None:
    assert str(user_error_for(OSError(number, os.strerror(number), "/data/x"))) == f"/data/x: {message}"


def test_other_system_errors_are_bugs() -> None:
    assert user_error_for(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert user_error_for(ValueError()) is None


def test_a_pickled_user_error_reads_the_same() -> None:
    error = UserError([Problem("a", "is wrong"), Problem("b", "is missing")], "Nothing was done.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
