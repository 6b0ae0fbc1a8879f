"""Which run to make next, when several processes or machines work on one study in a shared folder."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pspnet.study.grid import Run
from pspnet.study.results import Results


def by_preference(results: Results, runs: Sequence[Run]) -> list[Run]:
    """Sort the runs: on one machine, first those whose comparison it has begun, last those that others have begun."""
    host = platform.node()
    ranks = {None: 1, host: 0}
    return sorted(runs, key=lambda run: ranks.get(_machine_of(_block(results, run)), 2))


def take_block(results: Results, run: Run) -> None:
    """Note that this machine makes the runs to compare with this one, unless another has begun."""
    path = _block(results, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(platform.node())


def _block(results: Results, run: Run) -> Path:
    return results.work / "blocks" / f"{run.masks}-masks-seed-{run.seed}"


def _machine_of(block: Path) -> str | None:
    try:
        return block.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
