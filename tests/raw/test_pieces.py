"""Checking the raw data piece by piece: in several processes, in parts, killed and restarted."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.command import marked
from pspnet.dataset.store.pixels import decode_mask
from pspnet.errors import Interrupted, UserError
from pspnet.machine import code
from pspnet.machine.process import exclusive
from pspnet.raw import pieces, workers
from pspnet.raw.classes import Classes
from pspnet.raw.files import RawFiles
from pspnet.raw.inventory import RawDataset
from pspnet.raw.masks import Numbers
from pspnet.raw.parts import Part, join, parse_part, take, write_part
from pspnet.raw.pieces import Piece, batches, cut, discard, verdicts_in
from pspnet.raw.sample import RawSample
from pspnet.raw.workers import check_pieces
from tests.files import contents
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise, rules, write, write_pair
from tests.waiting import wait_until

RULES = rules(Classes(("back", "front"), ((0, 0, 0), (9, 9, 9)), {0: 0, 1: 1}, ()))
MASK = np.eye(8, 12, dtype=np.uint8)
COUNT = 40
STORED: dict[str, Any] = {"compress_level": 0}  # so that all masks of the same size have the same number of bytes


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty pairs, in pieces of eight. A few thousand bytes are enough to start another process."""
    monkeypatch.setattr(pieces, "PIECE", 8)
    monkeypatch.setattr(workers, "PROCESS_BYTES", 4000)
    folder = tmp_path / "raw"
    for number in range(COUNT):
        write_pair(folder, f"{number:02d}", MASK)
    return folder


def samples(raw: Path) -> list[RawSample]:
    names = sorted(path.stem for path in (raw / "images").iterdir())
    return [RawSample(name, f"images/{name}.png", Numbers(f"masks/{name}.png"), name, None) for name in names]


def check_all(raw: Path, folder: Path, processes: int = 1) -> tuple[list[Piece], list[int]]:
    os.environ["PSPNET_PREPARE_PROCESSES"] = str(processes)
    files, counts = RawFiles(raw), list[int]()
    wanted = cut(samples(raw), files, RULES)
    try:
        check_pieces(wanted, folder, files, RULES, lambda done, total, _: counts.append(done))
    finally:
        del os.environ["PSPNET_PREPARE_PROCESSES"]
    return wanted, counts


def dataset(raw: Path, wanted: list[Piece]) -> RawDataset:
    return RawDataset(RawFiles(raw), RULES, wanted, [])


def quiet(done: int, total: int, note: str) -> None:
    pass


def rows(folder: Path, wanted: list[Piece]) -> list[dict[str, Any]]:
    return [row for piece in wanted for batch in batches(folder / piece.name) for row in batch.to_pylist()]


@pytest.mark.e2e
def test_any_number_of_processes_writes_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    wanted, counts = check_all(raw, tmp_path / "one")
    assert counts == list(range(COUNT + 1))
    _, counts = check_all(raw, tmp_path / "three", processes=3)
    assert (counts[0], counts[-1]) == (0, COUNT)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert sorted(contents(tmp_path / "one")) == sorted(piece.name for piece in wanted)
    assert [row["id"] for row in rows(tmp_path / "one", wanted)] == [f"{n:02d}" for n in range(COUNT)]


def test_existing_pieces_are_not_made_again(raw: Path, tmp_path: Path) -> None:
    wanted, _ = check_all(raw, tmp_path / "out")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / wanted[2].name).unlink()
    _, counts = check_all(raw, tmp_path / "out")
    assert counts == list(range(32, 41))
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert [path.name for path in made if again[path] != made[path]] == [wanted[2].name]


def test_a_changed_file_of_the_same_size_is_checked_again(raw: Path, tmp_path: Path) -> None:
    wanted, _ = check_all(raw, tmp_path / "out")
    path = raw / "masks/03.png"
    size = path.stat().st_size
    path.write_bytes(b"x" * size)
    os.utime(path, (0, 0))  # as archivers set it
    again, counts = check_all(raw, tmp_path / "out")
    assert [one.name == other.name for one, other in zip(again, wanted, strict=True)] == [False, True, True, True, True]
    assert counts == list(range(32, 41))
    assert rows(tmp_path / "out", again)[3]["image"] is None


def test_a_changed_file_is_checked_again_after_the_clock_was_set_back(raw: Path, tmp_path: Path) -> None:
    size = write(raw / "masks/03.png", encoded(MASK, **STORED)).stat().st_size
    check_all(raw, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():  # as if written before the clock was set back
        os.utime(path, (2**32, 2**32))
    assert write(raw / "masks/03.png", encoded(1 - MASK, **STORED)).stat().st_size == size
    again, counts = check_all(raw, tmp_path / "out")
    assert counts == list(range(32, 41))
    assert np.array_equal(decode_mask(rows(tmp_path / "out", again)[3]["mask"]), 1 - MASK)


def test_different_rules_make_different_pieces(raw: Path) -> None:
    files = RawFiles(raw)
    other = rules(RULES.classes, mask_values="fix")
    names = [{piece.name for piece in cut(samples(raw), files, one)} for one in (RULES, other)]
    assert not names[0] & names[1]


@pytest.mark.e2e
def test_the_processes_stop_when_asked(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done:
            raise Interrupted(130)

    monkeypatch.setenv("PSPNET_PREPARE_PROCESSES", "2")
    files = RawFiles(raw)
    with pytest.raises(Interrupted):
        check_pieces(cut(samples(raw), files, RULES), tmp_path / "out", files, RULES, stop)
    assert multiprocessing.active_children() == []


KILLED = """
import sys
from pathlib import Path
if __name__ == "__main__":  # the workers skip this
    from tests.raw import test_pieces as own
    own.pieces.PIECE, own.workers.PROCESS_BYTES = 8, 4000
    own.check_all(Path(sys.argv[1]), Path(sys.argv[2]), 2)
"""


@pytest.mark.e2e
def test_a_run_killed_at_any_moment_and_restarted_writes_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    for number in range(COUNT, 400):
        write_pair(raw, f"{number:03d}", MASK)
    check_all(raw, tmp_path / "whole")
    (tmp_path / "run.py").write_text(KILLED)
    out = tmp_path / "out"
    for more in (1, 4, 10):  # number of further pieces, of 50, until the kill
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "run.py"), str(raw), str(out)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PSPNET_TEST": str(tmp_path)},
        )
        wanted = len(list(out.glob("*.arrow"))) + more
        wait_until(lambda: process.poll() is not None or len(list(out.glob("*.arrow"))) >= wanted)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    wait_until(lambda: not marked("PSPNET_TEST", str(tmp_path)), otherwise="an orphan is left")
    made = contents(out)
    check_all(raw, out)
    now = {name: data for name, data in contents(out).items() if not name.endswith(".partial")}
    assert now == contents(tmp_path / "whole")
    assert 3 <= len([name for name in made if name.endswith(".arrow")]) < len(now)


class Deadly(Numbers):
    """A mask that crashes the process that decodes it, as a defective decoder might."""

    def values(self, *_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.e2e
def test_an_image_that_crashes_its_process_is_found_and_left_out(raw: Path, tmp_path: Path) -> None:
    files = RawFiles(raw)
    every = samples(raw)
    every[13] = RawSample("13", "images/13.png", Deadly("masks/13.png"), "13", None)
    wanted = cut(every, files, RULES)
    os.environ["PSPNET_PREPARE_PROCESSES"] = "2"
    try:
        check_pieces(wanted, tmp_path / "out", files, RULES, lambda *_: None)
    finally:
        del os.environ["PSPNET_PREPARE_PROCESSES"]
    found = rows(tmp_path / "out", wanted)
    assert [row["id"] for row in found] == [sample.id for sample in every]
    assert [row["id"] for row in found if row["image"] is None] == ["13"]
    [reported] = verdicts_in(found[13]["verdicts"])
    assert reported.problem.found == "crashes the process that decodes it"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(piece.name for piece in wanted)


class Huge(Numbers):
    """A mask that fails as Pillow does when there is not enough memory."""

    def values(self, *_: Any) -> Any:
        raise MemoryError


@pytest.mark.e2e
@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_image_that_needs_too_much_memory_is_reported_and_left_out(
    raw: Path, tmp_path: Path, processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RawFiles(raw)
    every = samples(raw)
    every[13] = RawSample("13", "images/13.png", Huge("masks/13.png"), "13", None)
    wanted = cut(every, files, RULES)
    monkeypatch.setenv("PSPNET_PREPARE_PROCESSES", processes)
    counts = list[int]()
    check_pieces(wanted, tmp_path / "out", files, RULES, lambda done, *_: counts.append(done))
    assert processes == "2" or counts[-1] == COUNT
    found = rows(tmp_path / "out", wanted)
    assert [row["id"] for row in found if row["image"] is None] == ["13"]
    [reported] = verdicts_in(found[13]["verdicts"])
    assert (reported.problem.where, reported.problem.found) == ("masks/13.png", "needs more memory than there is")


def test_parts_divide_the_pieces_and_add_up_to_the_whole(raw: Path, tmp_path: Path) -> None:
    whole, _ = check_all(raw, tmp_path / "whole")
    folders = []
    for number in (1, 2, 3):
        files = RawFiles(raw)
        part = Part(number, 3)
        folders.append(tmp_path / f"part{number}")
        check_pieces(part.select(whole), folders[-1], files, RULES, lambda *_: None)
        write(folders[-1] / "part.json", f'{{"part": "{part}"}}')
    join(folders, dataset(raw, whole), tmp_path / "joined", quiet)
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")
    _, counts = check_all(raw, tmp_path / "joined")
    assert counts == [COUNT]  # the results are newer than the raw files, so nothing is checked again


def test_pieces_made_elsewhere_are_used_and_only_the_others_are_made(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = check_all(raw, tmp_path / "whole")
    check_pieces(Part(1, 2).select(whole), tmp_path / "parts/1-of-2", RawFiles(raw), RULES, lambda *_: None)
    write(tmp_path / "parts/2-of-2/of-other-data.arrow", b"")
    write(tmp_path / "parts/1-of-2.dvc", "outs: []")
    for path in (raw / "images").iterdir():  # the times differ, as after `dvc pull`
        path.touch()
    whole, _ = check_all(raw, tmp_path / "whole")
    monkeypatch.setenv("PSPNET_PARTS", str(tmp_path / "parts"))
    take(dataset(raw, whole), tmp_path / "taken", quiet)
    _, counts = check_all(raw, tmp_path / "taken")
    assert counts[0] == 24  # the images of three of the five pieces
    names = [piece.name for piece in whole]
    made = [contents(tmp_path / folder) for folder in ("taken", "whole")]
    assert [made[0][name] for name in names] == [made[1][name] for name in names]
    monkeypatch.setenv("PSPNET_PARTS", str(tmp_path / "nothing"))
    take(dataset(raw, whole), tmp_path / "none", quiet)
    assert contents(tmp_path / "none") == {}


def test_a_missing_part_is_named(raw: Path, tmp_path: Path) -> None:
    files = RawFiles(raw)
    whole = cut(samples(raw), files, RULES)
    check_pieces(Part(2, 3).select(whole), tmp_path / "two", files, RULES, lambda *_: None)
    write(tmp_path / "two/part.json", '{"part": "2/3"}')
    with pytest.raises(UserError, match=r"2/3 hold 2 of 5 pieces; expected all parts .* Add 1/3, 3/3\."):
        join([tmp_path / "two"], dataset(raw, whole), tmp_path / "joined", quiet)


@pytest.mark.parametrize("name", ["images/00.png", "masks/00.png"])
def test_parts_of_other_data_are_not_taken(raw: Path, tmp_path: Path, name: str) -> None:
    """Otherwise, a changed mask of the same size would keep its old pixels."""
    files = RawFiles(raw)
    size = write(raw / "masks/00.png", encoded(MASK, **STORED)).stat().st_size
    check_pieces(cut(samples(raw), files, RULES), tmp_path / "one", files, RULES, lambda *_: None)
    write(tmp_path / "one/part.json", '{"part": "1/1"}')
    data = encoded(MASK[::-1], **STORED) if name == "masks/00.png" else encoded(noise(9, 12))
    assert (write(raw / name, data).stat().st_size == size) == (name == "masks/00.png")
    wanted = cut(samples(raw), RawFiles(raw), RULES)
    with pytest.raises(UserError, match=r"hold 4 of 5 .* the raw data, the parameters or the code have changed"):
        join([tmp_path / "one"], dataset(raw, wanted), tmp_path / "joined", quiet)
    assert sorted(contents(tmp_path / "joined")) == sorted(piece.name for piece in wanted[1:])


def test_a_remade_part_holds_no_older_pieces(raw: Path, tmp_path: Path) -> None:
    for mask in (MASK, 1 - MASK):
        write(raw / "masks/00.png", encoded(mask))
        wanted = cut(samples(raw), RawFiles(raw), RULES)
        write_part(dataset(raw, wanted), Part(1, 1), tmp_path / "part", quiet)
    assert sorted(contents(tmp_path / "part")) == sorted(["part.json", *(piece.name for piece in wanted)])


def test_a_truncated_piece_of_a_part_is_made_again(raw: Path, tmp_path: Path) -> None:
    whole, _ = check_all(raw, tmp_path / "one")
    write(tmp_path / "one/part.json", '{"part": "1/1"}')
    write(tmp_path / "one" / whole[1].name, (tmp_path / "one" / whole[1].name).read_bytes()[:1000])
    with pytest.raises(UserError, match="hold 4 of 5 pieces"):
        join([tmp_path / "one"], dataset(raw, whole), tmp_path / "joined", quiet)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/2/3", "a/b", "-1/2", "1/0"])
def test_a_part_is_a_number_and_a_total(text: str) -> None:
    with pytest.raises(UserError, match="such as 2/4"):
        parse_part(text)
    assert parse_part("2/4") == Part(2, 4)


@pytest.mark.parametrize("content", [None, "", "{}", '{"part": 3}', "[1]"])
def test_a_folder_that_is_not_a_part_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        write(tmp_path / "part/part.json", content)
    with pytest.raises(UserError, match=r"has no readable part\.json|such as 2/4"):
        join([tmp_path / "part"], dataset(tmp_path, []), tmp_path / "joined", quiet)


def test_pieces_of_a_live_run_are_kept_and_those_of_a_dead_run_are_removed(raw: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    wanted, _ = check_all(raw, state / "own")
    for name in ("alive", "dead"):
        check_all(raw, state / name)
    with exclusive(state / "alive.lock", "it"):
        discard(state / "own")
    assert [path.name for path in state.iterdir() if path.is_dir()] == ["alive"]
    assert len(contents(state / "alive")) == len(wanted)


def test_changed_code_in_a_layout_makes_different_pieces(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "PACKAGE", shutil.copytree(code.PACKAGE, tmp_path / "code"))
    before = [piece.name for piece in cut(samples(raw), RawFiles(raw), RULES)]
    with (tmp_path / "code/raw/layouts/voc.py").open("a") as file:
        file.write("# changed\n")
    after = [piece.name for piece in cut(samples(raw), RawFiles(raw), RULES)]
    assert not {*before} & {*after}


@pytest.mark.e2e
def test_a_worker_ends_if_its_parent_died_before_the_death_signal_was_set() -> None:
    program = (
        "import os, signal; from pspnet.machine.process import die_with_parent; die_with_parent(signal.SIGKILL, {})"
    )
    for parent, status in ((os.getpid(), 0), (1, -signal.SIGKILL)):
        done = subprocess.run([sys.executable, "-c", program.format(parent)], timeout=60, check=False)
        assert done.returncode == status
