"""`pspnet retrain`: the flow in this process, on this machine, with no service."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.ending import TEMPORARY
from flows.retrain import retrain as flow
from flows.workplace import lay_out
from pspnet import terminal
from pspnet.errors import Busy, Problem, UserError
from pspnet.worktree import git


def retrain(state: Path, changes: Sequence[str]) -> None:
    overrides = parsed(changes)
    if overrides:
        checkout = Path.cwd()
        refuse_dirty(checkout, "An override runs in a worktree of the last commit, which would lack them.")
        run = f"set-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        workplace = lay_out(checkout, run, "HEAD")
        terminal.err.print(f"Worktree: {workplace.folder}", markup=False)
        os.chdir(workplace.folder)
    end(flow(overrides=overrides, return_state=True))


def end(state: Any) -> None:
    """The command ends as the flow did."""
    message = str(state.message)
    if state.is_completed():
        terminal.out.print(message, style="green", markup=False)
    elif state.name in TEMPORARY:
        raise Busy(message)
    else:
        raise UserError([], message)


def parsed(changes: Sequence[str]) -> dict[str, Any]:
    """`finetune.learning_rate=0.01`; the value is YAML, as in params.yaml."""
    overrides = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise UserError(Problem("--set", f"is '{change}'", "KEY=VALUE, such as finetune.learning_rate=0.01"))
        overrides[name] = yaml.safe_load(value)
    return overrides


def refuse_dirty(checkout: Path, why: str) -> None:
    changed = git(checkout, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock", ":(exclude)*.dvc").stdout
    if changed:
        names = [line[3:] for line in changed.splitlines()]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(Problem("git", f"has changes that are not committed: {shown}", fix=f"{why} Commit them first."))
