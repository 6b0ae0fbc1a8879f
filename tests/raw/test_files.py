import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pspnet.errors import Problem
from pspnet.raw import files as raw
from pspnet.raw.files import MOST_OPEN, RawFile, RawFiles
from pspnet.raw.images import Refused
from tests.raw.rawdata import write

MANY = 10**6
CONTENT = {"images/a/1.png": b"one", "images/2.png": b"two", "masks/a/1.png": b"mask"}


def zipped(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def tarred(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def below(raw: Path, *folders: str) -> tuple[dict[str, str], list[Problem]]:
    found = list(RawFiles(raw).below(*folders))
    files = dict(sorted(item for item in found if isinstance(item, RawFile)))
    return files, [item for item in found if isinstance(item, Problem)]


def read(raw: Path, *folders: str) -> dict[str, bytes]:
    files = RawFiles(raw)
    found = [item for item in files.below(*folders) if isinstance(item, RawFile)]
    return {item.name: files.read(item.path, MANY) for item in found}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_treated_as_the_files_in_it(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    suffix = "zip" if pack is zipped else "TAR"
    pack(tmp_path / f"day1.{suffix}", CONTENT)
    pack(tmp_path / f"images/deep/day2.{suffix}", {"./3.png": b"three", "more/4.png": b"four"})
    write(tmp_path / "images/5.png", b"five")
    assert below(tmp_path, "images") == (
        {
            "images/2.png": f"day1.{suffix}/images/2.png",
            "images/5.png": "images/5.png",
            "images/a/1.png": f"day1.{suffix}/images/a/1.png",
            "images/deep/3.png": f"images/deep/day2.{suffix}/3.png",
            "images/deep/more/4.png": f"images/deep/day2.{suffix}/more/4.png",
        },
        [],
    )
    assert read(tmp_path, "images", "masks") == {
        **CONTENT, "images/deep/3.png": b"three", "images/deep/more/4.png": b"four", "images/5.png": b"five",
    }  # fmt: skip


def test_other_folders_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "images/1.png", b"")
    write(tmp_path / "notes/1.txt", b"")
    (tmp_path / "notes/link").symlink_to(tmp_path)
    zipped(tmp_path / "notes/broken.zip", {}).write_bytes(b"no archive")
    zipped(tmp_path / "day1.zip", {"notes/1.txt": b"", "images/.hidden/2.png": b"", "images/Thumbs.db": b""})
    assert below(tmp_path, "images") == ({"images/1.png": "images/1.png"}, [])


def test_another_process_opens_the_archives_on_its_own(tmp_path: Path) -> None:
    zipped(tmp_path / "day1.zip", {f"images/{number}.png": b"x" for number in range(2000)})
    tarred(tmp_path / "day2.tar", CONTENT)
    files = RawFiles(tmp_path)
    list(files.below("images"))
    pickled = pickle.dumps(files)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read("day2.tar/images/a/1.png", MANY) == b"one"


def test_only_a_few_archives_are_open_at_once(tmp_path: Path) -> None:
    numbers = range(3 * MOST_OPEN)
    for number in numbers:
        zipped(tmp_path / f"images/{number}.zip", {f"{number}.png": b"%d" % number})
    files = RawFiles(tmp_path)
    assert len(list(files.below("images"))) == len(numbers)
    for number in [*numbers, *numbers]:
        assert files.read(f"images/{number}.zip/{number}.png", MANY) == b"%d" % number
    assert sum("images" in file.path for file in psutil.Process().open_files()) <= MOST_OPEN


@pytest.mark.parametrize("name", ["broken.zip", "broken.tar"])
def test_an_archive_that_cannot_be_opened_is_reported(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"no archive at all" * 100)
    _, [problem] = below(tmp_path, "images")
    assert problem.where == name
    assert problem.found.startswith("cannot be opened as an archive (")


def test_a_truncated_archive_is_reported(tmp_path: Path) -> None:
    path = tarred(tmp_path / "day.tar", {"images/1.png": b"x" * 5000})
    files = RawFiles(tmp_path)
    assert list(files.below("images")) == [RawFile("images/1.png", "day.tar/images/1.png")]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(Refused, match="is cut off at the end of its archive"):
        files.read("day.tar/images/1.png", MANY)
    whole = zipped(tmp_path / "other.zip", {"images/2.png": b"x" * 5000}).read_bytes()
    write(tmp_path / "other.zip", whole[: len(whole) // 2])
    assert {problem.where for problem in below(tmp_path, "images")[1]} == {"day.tar", "other.zip"}


@pytest.mark.parametrize("name", ["day.tar.gz", "day.tgz", "day.7z", "day.RAR"])
def test_other_kinds_of_archives_are_reported(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"")
    _, [problem] = below(tmp_path, "images")
    assert (problem.where, problem.expected) == (name, "files, .zip or .tar")


def test_a_member_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "day.zip", {"images/1.png": b"0123456789" * 50}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780", 1))
    files = RawFiles(tmp_path)
    list(files.below("images"))
    with pytest.raises(Refused, match=r"cannot be read from its archive \(Bad CRC-32"):
        files.read("day.zip/images/1.png", MANY)


def test_a_member_that_is_too_large_is_not_unpacked(tmp_path: Path) -> None:
    zipped(tmp_path / "bomb.zip", {"images/1.png": bytes(50 * MANY)})
    assert (tmp_path / "bomb.zip").stat().st_size < MANY
    tarred(tmp_path / "day.tar", {"images/2.png": bytes(2 * MANY)})
    write(tmp_path / "images/3.png", bytes(2 * MANY))
    files = RawFiles(tmp_path)
    for item in list(files.below("images")):
        assert isinstance(item, RawFile)
        with pytest.raises(Refused, match=r"MB, more than an image of prepare\.max_megapixels can take"):
            files.read(item.path, MANY)


def test_a_member_is_read_no_further_than_its_stated_size(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bomb.zip", {"images/1.png": bytes(50 * MANY)})
    size = (50 * MANY).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (1000).to_bytes(4, "little")))
    files = RawFiles(tmp_path)
    list(files.below("images"))
    with pytest.raises(Refused, match="cannot be read from its archive"):
        files.read("bomb.zip/images/1.png", MANY)


def test_members_that_are_not_regular_files_are_reported(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "day.tar", "w") as file:
        for name, kind in (("images/link.png", tarfile.SYMTYPE), ("images/pipe.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        file.addfile(tarfile.TarInfo("images/../../outside.png"))
        file.addfile(tarfile.TarInfo("images/\x07.png"))
        folder = tarfile.TarInfo("images/folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    files, problems = below(tmp_path, "images", ".")
    assert not files
    assert {problem.where: problem.found.split(" ")[1] for problem in problems} == {
        "day.tar/images/link.png": "a", "day.tar/images/pipe.png": "a", "day.tar/images/../../outside.png": "be",
        r"day.tar/images/\x07.png": "control",
    }  # fmt: skip


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_with_too_many_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    monkeypatch.setattr(raw, "MOST_MEMBERS", 20)
    suffix = "zip" if pack is zipped else "tar"
    pack(tmp_path / f"few.{suffix}", {f"images/{number}.png": b"" for number in range(20)})
    pack(tmp_path / f"many.{suffix}", {f"images/{number}.png": b"" for number in range(21)})
    files, [problem] = below(tmp_path, "images")
    assert len(files) == 20
    assert str(problem) == (
        f"many.{suffix}: contains too many files; expected at most 20. Pack them into several archives, or unpack it."
    )


def test_a_long_list_of_members_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MOST_MEMBERS", 20)
    path = zipped(tmp_path / "many.zip", {f"images/{number}.png": b"" for number in range(100)})
    place = path.read_bytes().index(b"PK\x01\x02")
    path.write_bytes(
        path.read_bytes()[:place] + bytes(4) + path.read_bytes()[place + 4 :]
    )  # zipfile would reject this archive
    _, [problem] = below(tmp_path, "images")
    assert problem.found == "contains too many files"


def test_a_member_without_a_name_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as file:
        file.writestr(zipfile.ZipInfo(""), "")
        file.writestr("images/1.png", "one")
    tarred(tmp_path / "two.tar", {"": b"", "images/2.png": b"two"})
    files, problems = below(tmp_path, ".")
    assert list(files) == ["images/1.png", "images/2.png"]
    assert [problem.found for problem in problems] == ["has no name", "has no name"]


def test_two_members_with_the_same_name_are_both_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "day.zip", "w") as file:
        file.writestr("images/1.png", "one")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("images/1.png", "two")
    files, [problem] = below(tmp_path, "images")
    assert not files
    assert problem.found == "occurs twice in its archive"


def test_an_encrypted_member_is_reported(tmp_path: Path) -> None:
    path = zipped(tmp_path / "day.zip", {"images/1.png": b"x"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[6] |= 1  # set the flag in the file's header and, below, in the listing at the end of the archive
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    _, [problem] = below(tmp_path, "images")
    assert problem.found == "is encrypted"
