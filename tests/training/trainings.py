"""The two training stages as tests run them: to the end, or up to a given point."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspnet.config.finetune import FinetuneParams
from pspnet.config.params import Params
from pspnet.config.section import Section
from pspnet.errors import Interrupted
from pspnet.model.backbone.digest import digest
from pspnet.stages import finetune, pretrain
from pspnet.tracking.run import StageRun

Tick = Callable[[int, int, str], None]
Place = tuple[int, int]  # training images processed, validation images evaluated since then


def quiet(done: int, total: int, note: str) -> None:
    """A progress callback that shows nothing."""


def place_of(done: int, note: str) -> Place:
    measured = re.search(r"val (\d+)/", note)
    return done, int(measured[1]) if measured else 0


def stopping_at(place: Place) -> Tick:
    """Return a progress callback that interrupts training at this point, no matter where training started."""

    def tick(done: int, total: int, note: str) -> None:
        if place_of(done, note) >= place:
            raise Interrupted(130)

    return tick


def changed(params: Params, **sections: dict[str, Any]) -> Params:
    return params.model_copy(
        update={name: _changed(getattr(params, name), changes) for name, changes in sections.items()}
    )


def _changed(section: Section, changes: Mapping[str, Any]) -> Section:
    """Return the section with changes. Changes to an inner section may contain only some of its keys.

    If only `epochs` is given, `finetune` evaluates val after each epoch.
    """
    if "epochs" in changes and isinstance(section, FinetuneParams):
        changes = {"validations": changes["epochs"], **changes}
    inner = {name: getattr(section, name) for name in changes}
    update = {
        name: _changed(inner[name], change) if isinstance(change, dict) and isinstance(inner[name], Section) else change
        for name, change in changes.items()
    }
    return section.model_copy(update=update)


def run_finetune(
    params: Params, prepared: Path, backbone: Path, folder: Path, tick: Tick = quiet, run: StageRun | None = None
) -> str:
    """Run `finetune`; returns the bundle's digest."""
    finetune.run(
        params.backbone, params.finetune, params.runtime, prepared=prepared, pretrained=backbone,
        out=folder / "bundle", history=folder / "history.csv", checkpoints=folder / "checkpoints",
        run=run or StageRun(), tick=tick,
    )  # fmt: skip
    return digest(folder / "bundle")


def run_pretrain(params: Params, prepared: Path, folder: Path, tick: Tick = quiet, weights: Path = Path("none")) -> str:
    """Run `pretrain`; returns the backbone's digest."""
    pretrain.run(
        params.backbone, params.pretrain, params.runtime, prepared=prepared, weights=weights,
        out=folder / "backbone", history=folder / "history.csv", page=folder / "page.html",
        checkpoints=folder / "checkpoints", run=StageRun(), tick=tick,
    )  # fmt: skip
    return digest(folder / "backbone")


@dataclass(frozen=True)
class Finished:
    """An undisturbed training run. Tests only read the run's folder."""

    folder: Path

    @property
    def digest(self) -> str:
        bundle, backbone = self.folder / "bundle", self.folder / "backbone"
        return digest(bundle if bundle.exists() else backbone)

    @property
    def history(self) -> str:
        return (self.folder / "history.csv").read_text()

    @property
    def ticks(self) -> list[tuple[int, int, str]]:
        return [(done, total, note) for done, total, note in json.loads((self.folder / "ticks.json").read_text())]

    @property
    def places(self) -> list[Place]:
        return [place_of(done, note) for done, _, note in self.ticks]

    @property
    def seconds(self) -> float:
        return float((self.folder / "seconds").read_text())

    @classmethod
    def in_folder(cls, folder: Path, run: Callable[[Tick], object]) -> "Finished":
        ticks: list[tuple[int, int, str]] = []
        started = time.monotonic()
        run(lambda *tick: ticks.append(tick))
        (folder / "seconds").write_text(str(time.monotonic() - started))
        (folder / "ticks.json").write_text(json.dumps(ticks))
        return cls(folder)
