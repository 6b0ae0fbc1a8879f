"""The data for which this machine has already started retraining."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.dag import Source
from pspnet.config.reading import read_yaml
from pspnet.machine.outputs import whole_file
from pspnet.machine.process import exclusive

STARTS_SECONDS = 6 * 3600.0  # maximum time to start retraining, which includes pushing the data to the remote


@dataclass(frozen=True)
class SeenData:
    listing: str = ""  # digest of the files' names, sizes and times at the last check
    content: str = ""


@contextmanager
def seen_data(state: Path) -> Iterator[dict[str, SeenData]]:
    """The data that was already seen, by name of the source. Changes made inside the block are saved."""
    path = state / "taken.json"
    with exclusive(state / "taken.lock", "the data", STARTS_SECONDS):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        seen = {name: SeenData(**facts) for name, facts in known.items()}
        before = dict(seen)
        yield seen
        if seen != before:
            with whole_file(path) as partial:
                partial.write_text(json.dumps({name: vars(data) for name, data in seen.items()}), encoding="utf-8")


def mark_seen(state: Path, checkout: Path, source: Source) -> None:
    with seen_data(state) as seen:
        before = seen.get(source.name, SeenData())
        seen[source.name] = SeenData(before.listing, content_digest(checkout, source))


def content_digest(checkout: Path, source: Source) -> str:
    path = checkout / source.file
    return str(read_yaml(path)["outs"][0].get("md5", "")) if path.exists() else ""
