"""`pspnet accept`: keep a stage's results after a code change that a person declares harmless, and record that."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pspnet.config.reading import read_yaml
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.process import user

LOCK = Path("dvc.lock")
RECORD = Path("accepted.jsonl")  # committed with dvc.lock; lists results that were computed by older code


def accept(stage: str, why: str) -> None:
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    if stage not in stages:
        raise UserError(Problem("dvc.yaml", f"has no stage '{stage}'", ", ".join(stages)))
    before = read_yaml(LOCK)["stages"].get(stage) if LOCK.exists() else None
    if before is None:
        raise UserError(Problem(str(LOCK), f"has no results for '{stage}'", fix=f"Run `dvc repro {stage}` first."))
    changed = _changed_code(stage)
    if not changed:
        terminal.out.print(f"{stage}: nothing has changed, so there is nothing to accept.")
        return
    entry = {
        "stage": stage,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": user(),
        "why": why,
        "changed": changed,
        "results": {item["path"]: item["md5"] for item in before["outs"]},
    }
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    _dvc("commit", "--force", "--quiet", stage)  # done last, so that results are never kept without a record
    terminal.out.print(f"{stage}: results kept although {', '.join(changed)} changed; recorded in {RECORD}.")
    terminal.out.print(f"Commit it together with {LOCK}.")


def _changed_code(stage: str) -> list[str]:
    """The code that changed since the stage's results were computed. Any other change raises an error."""
    status: list[Any] = json.loads(_dvc("status", "--json", stage)).get(stage, [])
    changes = [
        (kind, path) for entry in status if isinstance(entry, dict) for kind, paths in entry.items() for path in paths
    ]
    code = [path for kind, path in changes if kind == "changed deps" and path.startswith("pspnet/")]
    other = sorted({path for _, path in changes} - set(code))
    if other or any(not isinstance(entry, dict) for entry in status):
        found = f"more than its code has changed: {', '.join(other) or 'the command'}"
        raise UserError(Problem(stage, found, fix=f"Run `dvc repro {stage}`: this changes the result."))
    return sorted(code)


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(Problem(f"dvc {' '.join(arguments)}", done.stderr.strip()))
    return done.stdout
