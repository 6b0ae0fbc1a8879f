"""`pspnet accept`: a change of code that cannot matter, taken on a person's word, and that word kept."""

import getpass
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pspnet import terminal
from pspnet.config.reading import read_yaml
from pspnet.errors import Problem, UserError

LOCK = Path("dvc.lock")
RECORD = Path("accepted.jsonl")  # committed with dvc.lock: its entries say which results older code has made


def accept(stage: str, why: str) -> None:
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    if stage not in stages:
        raise UserError(Problem("dvc.yaml", f"has no stage '{stage}'", ", ".join(stages)))
    before = _locked(stage)
    if not before:
        raise UserError(Problem(str(LOCK), f"knows no results of '{stage}'", fix=f"Run `dvc repro {stage}` first."))
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet", stage], check=True)
    after = _locked(stage)
    changed = {
        path: [before["deps"].get(path), digest]
        for path, digest in after["deps"].items()
        if before["deps"].get(path) != digest
    }
    if not changed:
        terminal.out.print(f"{stage}: no dependency has changed, there was nothing to accept.")
        return
    entry = {
        "stage": stage,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": getpass.getuser(),
        "why": why,
        "changed": changed,
        "results": after["outs"],
    }
    with RECORD.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    terminal.out.print(
        f"{stage}: results kept although {', '.join(changed)} changed; {RECORD} says so. Commit it with {LOCK}."
    )


def _locked(stage: str) -> dict[str, dict[str, Any]]:
    """Path -> digest of the stage's dependencies and results."""
    entry = read_yaml(LOCK)["stages"].get(stage) if LOCK.exists() else None
    if entry is None:
        return {}
    return {kind: {item["path"]: item.get("md5") for item in entry.get(kind, [])} for kind in ("deps", "outs")}
