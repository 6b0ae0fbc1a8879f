import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pspnet.errors import Problem, UserError
from pspnet.outputs import mistake_of, whole_file, whole_folder
from pspnet.training.checkpoint import Checkpoint, TrainingState
from pspnet.training.optimizer import build_optimizer
from tests.command import pspnet
from tests.limits import files_up_to


def test_a_folder_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_checkpoint_that_does_not_fit_says_where_and_how_much_it_needs(tmp_path: Path) -> None:
    module = nn.Linear(500, 500)
    state = TrainingState(module, build_optimizer("sgd", [(module.parameters(), 1.0)], 0.1, 0.9, 0.0, True))
    checkpoint = Checkpoint(tmp_path / "finetune-1")
    checkpoint.save(state)
    kept = (tmp_path / "finetune-1/state.safetensors").read_bytes()
    nn.init.zeros_(module.weight)
    with files_up_to(1000), pytest.raises(UserError) as error:
        checkpoint.save(state)
    assert re.fullmatch(
        re.escape(f"{tmp_path}/finetune-1: has no room for state.safetensors (File too large; ")
        + r"[\d,.]+ [GM]B free\); expected about 1\.0 MB of free space\. "
        r"Make room there, then run the same command again\.",
        str(error.value),
    )
    assert (tmp_path / "finetune-1/state.safetensors").read_bytes() == kept
    assert torch.count_nonzero(module.weight) == 0
    assert [path.name for path in (tmp_path / "finetune-1").iterdir()] == ["state.safetensors"]


def test_a_folder_and_a_file_that_do_not_fit_are_told_and_leave_nothing(tmp_path: Path) -> None:
    with files_up_to(10), pytest.raises(UserError, match="has no room for out"), whole_folder(tmp_path / "out") as out:
        (out / "file").write_bytes(b"x" * 100)
    with (
        files_up_to(10),
        pytest.raises(UserError, match=r"has no room for a\.json"),
        whole_file(tmp_path / "a.json") as a,
    ):
        a.write_bytes(b"x" * 100)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_a_message(tmp_path: Path) -> None:
    done = pspnet("synthesize", "/sys/drawn", "--images", "1", "--labelled", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("/sys/drawn.partial: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            errno.EROFS,
            "cannot be written (Read-only file system). Work in a checkout on a disk that is not mounted read-only.",
        ),
        (errno.ENOSPC, "has no room (No space left on device). Make room there, then run the same command again."),
        (
            errno.EACCES,
            (
                "may not be used by this user (Permission denied). "
                "Work in a checkout of your own, or have its owner give access."
            ),
        ),
    ],
)
def test_what_the_system_refuses_is_told_wherever_it_happens(number: int, told: str) -> None:
    assert str(mistake_of(OSError(number, os.strerror(number), "/data/x"))) == f"/data/x: {told}"


def test_other_errors_of_the_system_are_bugs() -> None:
    assert mistake_of(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert mistake_of(ValueError()) is None


def test_a_mistake_told_in_another_process_reads_the_same() -> None:
    told = UserError([Problem("a", "is wrong"), Problem("b", "is missing")], "Nothing was done.")
    again = pickle.loads(pickle.dumps(told))
    assert (str(again), again.problems) == (str(told), told.problems)
