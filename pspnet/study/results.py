"""The results: one file per finished run, so that processes and machines can share a folder, and one CSV of all."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pspnet.errors import Busy
from pspnet.machine.outputs import whole_file
from pspnet.machine.process import exclusive

CSV, PAGE = "study.csv", "study.html"
WAIT_SECONDS = 1.0  # between looks at what other processes have made
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    folder: Path

    @property
    def work(self) -> Path:
        """For locks, checkpoints and backbones: needed until the study is complete, and not worth keeping after."""
        return self.folder / "work"

    def prepare(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / ".gitignore").write_text("*\n", encoding="utf-8")

    def lock(self, key: str) -> Path:
        return self.work / "locks" / key

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Yield whether this process may make it: no other does. The system frees the claim of a killed process."""
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.lock(key), key, seconds=0))
            except Busy:
                yield False
                return
            yield True

    def has(self, key: str) -> bool:
        return self._path(key).exists()

    def add(self, key: str, row: Row) -> None:
        with whole_file(self._path(key)) as path:
            path.write_text(json.dumps({"key": key, **row}, indent=1) + "\n", encoding="utf-8")

    def rows(self, keys: Sequence[str]) -> pd.DataFrame:
        """Return the finished runs among these."""
        return _frame([self._path(key) for key in keys if self.has(key)])

    def write(self, page: str) -> None:
        """Write the CSV of all finished runs in the folder, and the page."""
        with exclusive(self.lock("page"), "the page of this study"):
            with whole_file(self.folder / CSV) as path:
                _frame(sorted((self.folder / "runs").glob("*.json"))).to_csv(path, index=False)
            with whole_file(self.folder / PAGE) as path:
                path.write_text(page, encoding="utf-8")

    def _path(self, key: str) -> Path:
        return self.folder / "runs" / f"{key}.json"


def _frame(paths: Sequence[Path]) -> pd.DataFrame:
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    order = ["steps", "masks", "seed", "arm"]
    return pd.DataFrame(rows).sort_values(order, kind="stable", ignore_index=True) if rows else pd.DataFrame()
