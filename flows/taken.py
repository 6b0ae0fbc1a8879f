"""Which content of the data a retraining has been started for, on this machine."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.dag import Source
from pspnet.config.reading import read_yaml
from pspnet.outputs import whole_file
from pspnet.process import exclusive

STARTS_SECONDS = 6 * 3600.0  # while one is started the data go to the remote


@dataclass(frozen=True)
class Taken:
    listing: str = ""  # of the files, when they were looked at last
    content: str = ""


@contextmanager
def memory(state: Path) -> Iterator[dict[str, Taken]]:
    """Source -> what is known of it; what is changed in it is kept."""
    path = state / "taken.json"
    with exclusive(state / "taken.lock", "the data", STARTS_SECONDS):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        taken = {name: Taken(**one) for name, one in known.items()}
        before = dict(taken)
        yield taken
        if taken != before:
            with whole_file(path) as partial:
                partial.write_text(json.dumps({name: vars(one) for name, one in taken.items()}), encoding="utf-8")


def take(state: Path, checkout: Path, source: Source) -> None:
    with memory(state) as taken:
        before = taken.get(source.name, Taken())
        taken[source.name] = Taken(before.listing, content(checkout, source))


def content(checkout: Path, source: Source) -> str:
    path = checkout / source.file
    return str(read_yaml(path)["outs"][0].get("md5", "")) if path.exists() else ""
