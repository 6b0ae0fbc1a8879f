"""Fuzzes an archive in the raw data: listing and reading its members."""

import io
import tarfile
import zipfile
from pathlib import Path

from hypothesis import strategies as st

from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.images import Refused
from tests.fuzz._edits import nearly

MOST_BYTES = 10**6
NAMES = ("images/1.png", "images/2.png", "../out.png", "/abs.png", "a\\b.png", "images/line\nbreak.png", "", ".hidden")


def one(data: bytes, folder: Path) -> None:
    """Check that each member is a readable file or a printable problem, and that nothing is written."""
    path = folder / ("a.zip" if data[:2] == b"PK" else "a.tar")
    path.write_bytes(data)
    files = RawFiles(folder)
    for found in files.below("."):
        if isinstance(found, RawFile):
            found.name.encode()
            try:
                assert len(files.read(found.path, MOST_BYTES)) <= MOST_BYTES
            except Refused as refused:
                assert refused.found
        else:
            str(found).encode()
    assert list(folder.iterdir()) == [path]


def _zip(compression: int, names: tuple[str, ...] = NAMES) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), bytes(100))
    return file.getvalue()


def _tar(kind: int, names: tuple[str, ...] = NAMES) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for name in (*names, "long" * 20):
            info = tarfile.TarInfo(name)
            info.size = 100
            archive.addfile(info, io.BytesIO(bytes(100)))
        for type_ in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE):
            info = tarfile.TarInfo("images/other")
            info.type, info.linkname = type_, "/etc/passwd"
            archive.addfile(info)
    return file.getvalue()


_ZIPS = [_zip(kind) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]
_TARS = [_tar(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
INPUTS = nearly([*_ZIPS, *_TARS, _zip(zipfile.ZIP_STORED, NAMES[:1])]) | st.binary(max_size=600)
