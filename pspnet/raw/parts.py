"""Check raw data in parts: any machine with the data can check a part, and one machine joins the parts."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file
from pspnet.raw.inventory import RawDataset
from pspnet.raw.pieces import Piece, Tick, take_same
from pspnet.raw.workers import check_pieces

FACTS = "part.json"


class Part(NamedTuple):
    number: int  # from 1
    of: int

    def select(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        return pieces[self.number - 1 :: self.of]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    number, slash, of = text.partition("/")
    if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return Part(int(number), int(of))
    raise UserError(Problem("--part", f"is '{text}'", "a part and the number of parts, such as 2/4"))


def write_part(raw: RawDataset, part: Part, out: Path, tick: Tick) -> None:
    """Check the pieces of a part and write them into a folder. If killed and restarted, it resumes."""
    own = part.select(raw.pieces)
    check_pieces(own, out, raw.files, raw.rules, tick)
    for path in {*out.glob("*.arrow")} - {out / piece.name for piece in own}:  # from data that has since changed
        path.unlink()
    with whole_file(out / FACTS) as partial:
        partial.write_text(json.dumps({"part": str(part)}) + "\n", encoding="utf-8")


def join(folders: Sequence[Path], raw: RawDataset, into: Path, tick: Tick) -> None:
    """Take every piece of the raw data from the parts. A missing piece is an error."""
    parts, wanted = [_part_in(folder) for folder in folders], raw.pieces
    missing = take_same(wanted, folders, into, raw.files, raw.rules.max_bytes, tick)
    if missing:
        names = {piece.name for piece in missing}
        places = [place for place, piece in enumerate(wanted) if piece.name in names]
        lacking = sorted({Part(place % parts[0].of + 1, parts[0].of) for place in places} - {*parts})
        found = f"{', '.join(map(str, parts))} hold {len(wanted) - len(missing):,} of {len(wanted):,} pieces"
        fix = (
            f"Add {', '.join(map(str, lacking))}."
            if lacking
            else "Create the parts again, because the raw data, the parameters or the code have changed."
        )
        raise UserError(Problem("--merge", found, "all parts of this raw data", fix))


def take(raw: RawDataset, into: Path, tick: Tick) -> None:
    """Take pieces from the parts that other machines checked for this run, if their data, rules and code match."""
    if found := os.environ.get("PSPNET_PARTS"):
        folders = [path for path in Path(found).glob("*") if path.is_dir()]
        take_same(raw.pieces, folders, into, raw.files, raw.rules.max_bytes, tick)


def _part_in(folder: Path) -> Part:
    path = folder / FACTS
    try:
        return parse_part(str(json.loads(path.read_text(encoding="utf-8"))["part"]))
    except (OSError, ValueError, TypeError, KeyError):
        fix = "Create it with: pspnet prepare --part"
        raise UserError(Problem(str(folder), f"has no readable {FACTS}", "a complete part", fix)) from None
