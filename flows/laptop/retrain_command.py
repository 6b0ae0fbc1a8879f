"""`pspnet retrain`: runs the flow in this process. No service needs to be running."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.failure import TEMPORARY
from flows.laptop import server
from flows.laptop.nothing_to_do import nothing_to_do
from flows.workplace import PARAMS, lay_out
from pspnet.config.params import load_params
from pspnet.config.reading import parse_value
from pspnet.errors import EXIT_CTRL_C, Busy, Interrupted, Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.worktree import git


def retrain(state: Path, changes: Sequence[str]) -> None:
    overrides, state = parse_overrides(changes), state.resolve()
    if overrides:
        checkout = Path.cwd()
        refuse_dirty(checkout, "With --set, the run uses a worktree of the last commit, without these changes.")
        run = f"set-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        workplace = lay_out(checkout, run, "HEAD")
        terminal.err.print(f"Worktree: {workplace.folder}", markup=False)
        os.chdir(workplace.folder)
        workplace.set_params(overrides)
    load_params(Path(PARAMS))  # reports mistakes in the params before anything starts
    if not overrides and (headline := nothing_to_do()):
        terminal.out.print("Nothing has changed.")
        terminal.out.print(headline, style="green", markup=False)
        return
    server.start_for_this_run(state)
    from flows.retrain import retrain as flow

    try:
        end_like(flow(overrides=overrides, return_state=True))
    except KeyboardInterrupt:
        raise Interrupted(EXIT_CTRL_C) from None


def end_like(state: Any) -> None:
    """End this command as the flow ended: print the flow's message, or raise the corresponding error."""
    message = str(state.message)
    if state.is_completed():
        terminal.out.print(message, style="green", markup=False)
    elif state.name in TEMPORARY:
        raise Busy(message)
    else:
        raise UserError([], message)


def parse_overrides(changes: Sequence[str]) -> dict[str, Any]:
    """Parse changes such as `finetune.optimizer.learning_rate=0.01`. Values are YAML, as in params.yaml."""
    overrides = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise UserError(Problem("--set", f"is '{change}'", "KEY=VALUE, such as finetune.epochs=40"))
        overrides[name] = parse_value(value, "--set")
    return overrides


def refuse_dirty(checkout: Path, why: str) -> None:
    changed = git(checkout, "status", "--porcelain", "--", ".", ":(exclude)dvc.lock", ":(exclude)*.dvc").stdout
    if changed:
        names = [line[3:] for line in changed.splitlines()]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(Problem("git", f"has uncommitted changes: {shown}", fix=f"{why} Commit them first."))
