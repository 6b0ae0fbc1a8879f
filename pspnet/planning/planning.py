"""`pspnet plan`: choose params for this data, this device and the minutes to spend."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pspnet.config.editing import edited
from pspnet.config.params import Params
from pspnet.config.reading import parse_value, read_yaml, validate
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import replace_text
from pspnet.machine.worktree import dvc_command
from pspnet.planning.device import this_device
from pspnet.planning.facts import DataFacts
from pspnet.planning.loop import time_loop
from pspnet.planning.rules import Choice, Plan, Rung, duration, made

HEADLINES = (
    "backbone.depth", "backbone.width", "finetune.crop_height_px", "finetune.crop_width_px", "finetune.batch_size",
    "finetune.epochs", "finetune.loss.kind", "runtime.precision",
)  # fmt: skip


def plan(minutes: float, params: Path, prepared: Path, backup: Path, state: Path, explain: bool) -> None:
    before = params.read_text(encoding="utf-8")
    validate(Params, read_yaml(params), params.name)
    choices = choose(_prepared(prepared), before, minutes, state)
    replace_text(params, planned(before, choices), backup)
    validate(Params, read_yaml(params), params.name)
    _show(choices, explain)
    terminal.out.print(f"{params} now plans {minutes:g} minutes of training; the previous params are in {backup}.")
    terminal.out.print("Next: make retrain")


def choose(dataset: PreparedDataset, params: str, minutes: float, state: Path) -> list[Choice]:
    """Return all choices for the prepared set on this device. `params` is the text of a params file."""
    current = validate(Params, parse_value(params, "params.yaml"), "params.yaml")
    facts, backbone = DataFacts.of(dataset), current.backbone
    if not facts.train_masks:
        raise UserError(Problem(str(dataset.folder), "has no masks in train", "images with masks"))
    fixed = None if backbone.weights == "random" else Rung(backbone.depth, backbone.width, 16)
    own = made(Plan(facts, *this_device(current.runtime), minutes, backbone.weights, fixed))
    average = Choice("finetune.ema_decay", 0.9, "timed too")
    timed = planned(params, [*own.choices, average])
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state, prefix="plan-") as folder:
        measured = time_loop(dataset, validate(Params, parse_value(timed, "the plan"), "the plan"), Path(folder))
    return [*own.choices, *duration(own, measured)]


def planned(params: str, choices: Sequence[Choice]) -> str:
    """Return the text of the params file with the choices, each with its reason on the same line."""
    values = {choice.key: choice.value for choice in choices}
    comments = {_line_of(choice): choice.reason for choice in choices}
    return edited(params, values, "params.yaml", comments)


def _line_of(choice: Choice) -> str:
    """Return the key on the same line as the value. For a section, that is its first key."""
    return f"{choice.key}.{next(iter(choice.value))}" if isinstance(choice.value, dict) else choice.key


def _prepared(folder: Path) -> PreparedDataset:
    """Return the prepared set, after creating it from data/raw if it is missing or outdated."""
    command = dvc_command("--wait-for-lock", "repro", "--quiet", "prepare")
    if subprocess.run(command, check=False).returncode:
        raise UserError(Problem("dvc repro prepare", "failed", fix="See the message above."))
    return PreparedDataset.open(folder)


def _show(choices: list[Choice], explain: bool) -> None:
    by_key = {choice.key: choice for choice in choices}
    table = Table("parameter", "value", "why", show_edge=False, pad_edge=False)
    for key in by_key if explain else HEADLINES:
        choice = by_key[key]
        table.add_row(escape(key), escape(str(choice.value)), escape(choice.reason))
    terminal.out.print(table)
