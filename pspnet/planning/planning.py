"""`pspnet plan`: params for this data, this device and the minutes to spend."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import Params
from pspnet.config.reading import read_yaml, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_file
from pspnet.machine.worktree import dvc_command
from pspnet.planning.device import this_device
from pspnet.planning.facts import DataFacts
from pspnet.planning.loop import time_loop
from pspnet.planning.rules import Choice, Plan, Rung, duration, made
from pspnet.planning.writing import params_text, with_choices

HEADLINES = (
    "backbone.depth", "backbone.width", "finetune.crop_height_px", "finetune.crop_width_px", "finetune.batch_size",
    "finetune.epochs", "finetune.loss.kind", "runtime.precision",
)  # fmt: skip


def plan(minutes: float, params: Path, prepared: Path, backup: Path, state: Path, explain: bool) -> None:
    before = read_yaml(params)
    validate(Params, before, params.name)
    dataset = _prepared(prepared)
    choices = choose(dataset, before, minutes, state)
    after = with_choices(before, choices)
    validate(Params, after, params.name)
    with whole_file(backup) as partial:
        partial.write_bytes(params.read_bytes())
    with whole_file(params) as partial:
        partial.write_text(params_text(after, choices, _heading(minutes)), encoding="utf-8")
    _show(choices, explain)
    terminal.out.print(f"{params} now plans {minutes:g} minutes of training; the previous params are in {backup}.")
    terminal.out.print("Next: make retrain")


def choose(dataset: PreparedDataset, before: dict[str, Any], minutes: float, state: Path) -> list[Choice]:
    """All choices for the prepared set on this device."""
    current = validate(Params, before, "params.yaml")
    facts, backbone = DataFacts.of(dataset), current.backbone
    if not facts.train_masks:
        raise UserError(Problem(str(dataset.folder), "has no masks in train", "images with masks"))
    fixed = None if backbone.weights == "random" else Rung(backbone.depth, backbone.width, 16)
    own = made(Plan(facts, *this_device(current.runtime), minutes, backbone.weights, fixed))
    average = Choice("finetune.ema_decay", 0.9, "timed too")
    planned = validate(Params, with_choices(before, [*own.choices, average]), "params.yaml")
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state, prefix="plan-") as folder:
        measured = time_loop(dataset, planned, Path(folder))
    return [*own.choices, *duration(own, measured)]


def _prepared(folder: Path) -> PreparedDataset:
    """The prepared set, made from data/raw now if it is missing or outdated."""
    command = dvc_command("--wait-for-lock", "repro", "--quiet", "prepare")
    if subprocess.run(command, check=False).returncode:
        raise UserError(Problem("dvc repro prepare", "failed", fix="See the message above."))
    return PreparedDataset.open(folder)


def _heading(minutes: float) -> str:
    return f"""Planned by `pspnet plan --minutes {minutes:g}` for the data in data/raw and the machine it ran on.
Edit anything. Planning again replaces backbone, pretrain, finetune, predict and runtime; the rest is yours.
What each key means: pspnet/config/."""


def _show(choices: list[Choice], explain: bool) -> None:
    by_key = {choice.key: choice for choice in choices}
    table = Table("parameter", "value", "why", show_edge=False, pad_edge=False)
    for key in by_key if explain else HEADLINES:
        choice = by_key[key]
        table.add_row(escape(key), escape(str(choice.value)), escape(choice.reason))
    terminal.out.print(table)
