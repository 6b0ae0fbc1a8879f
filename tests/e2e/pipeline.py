"""Checkouts of the project with parameters so small that the whole pipeline takes seconds."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pspnet.config.reading import read_yaml
from tests.command import pspnet
from tests.parameters import ROOT, changed

if TYPE_CHECKING:
    from torch import Tensor

BIN = Path(sys.executable).parent
# Name of the environment variable with a folder of commands that replace the real ones (conftest.py).
STAND_INS = "TESTS_STAND_INS"
SYNTHESIZE = ("pspnet", "synthesize", "data/raw", "--images", "40", "--labeled", "28")
RUN_SECONDS = 600
STEPS = ("prepare", "pretrain", "finetune", "evaluate")

TINY: dict[str, Any] = {
    "dataset__group_pattern": "(.*)",
    "backbone__width": 0.125,
    "pretrain__epochs": 2,
    "pretrain__batch_size": 8,
    "pretrain__crop_px": 48,
    "finetune__epochs": 2,
    "finetune__batch_size": 4,
    "finetune__crop_height_px": 48,
    "finetune__crop_width_px": 64,
    "runtime__threads": 1,
}


def checkout(folder: Path, **changes: Any) -> Path:
    """Copy the files that git tracks, in their current state, into a new git and DVC repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name not in ("dvc.lock", "data/raw.dvc", "accepted.jsonl"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    write_params(folder, **(TINY | changes))
    run(folder, "git", "init", "--quiet")
    commit(folder, "--all")
    return folder


def copied(source: Path, folder: Path) -> Path:
    """Copy a checkout with its results, caches, checkpoints, runs and versions."""
    # Not copied: locks, and DVC's index, which contains the folder's path.
    shutil.copytree(source, folder, symlinks=True, ignore=lambda path, _: ["tmp"] if path.endswith("/.dvc") else [])
    if (database := folder / ".pspnet/mlflow.db").exists():
        move_addresses(database, f"{source}/", f"{folder}/")
    return folder


def move_addresses(database: Path, old: str, new: str) -> None:
    """Replace the absolute address of each artifact folder, which MLflow stores."""
    with closing(sqlite3.connect(database)) as connection:
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            for _, column, kind, *_ in connection.execute(f"pragma table_info('{table}')").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    connection.execute(
                        f'update "{table}" set "{column}" = replace("{column}", ?, ?) where instr("{column}", ?)',
                        (old, new, old),
                    )
        connection.commit()


def clone(source: Path, folder: Path) -> Path:
    """Clone a checkout as another machine would, so that it has only the committed files."""
    folder.parent.mkdir(exist_ok=True)
    run(source, "git", "clone", "--quiet", str(source), str(folder))
    return folder


def commit(folder: Path, *paths: str) -> None:
    run(folder, "git", "add", *paths)
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "more")


def import_weights(folder: Path, seed: int) -> "Tensor":
    """Create random weights and import them. Returns the first convolution."""
    import torch

    from tests.model.foreign import random_tensors

    tensors = random_tensors("torchvision_resnet18", seed, narrow=8)
    file = folder.parent / f"resnet18-{seed}.pth"
    torch.save(tensors, file)
    done = pspnet("weights", "import", file, "--from", "torchvision", cwd=folder)
    assert "100.0% of the tensors (backbone 100 of 100)" in done.stdout + done.stderr
    return tensors["conv1.weight"]


def write_params(folder: Path, **changes: Any) -> None:
    (folder / "params.yaml").write_text(
        yaml.safe_dump(changed(read_yaml(folder / "params.yaml"), changes), sort_keys=False)
    )


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return environment variables that make commands use this checkout's package instead of the installed one."""
    given = os.environ | more
    return given | {
        "SHELL": "/bin/sh",  # DVC starts stages with this shell; dash would remain as a process in between
        "PATH": os.pathsep.join(filter(None, [given.get(STAND_INS), str(BIN), given["PATH"]])),
        "PYTHONPATH": str(folder),
        "PSPNET_LOADER_WORKERS": "1",
        "DVC_NO_ANALYTICS": "1",
    }


def warmed(stand_ins: Path) -> dict[str, str]:
    """Return environment variables that make commands start instantly and without tracking."""
    return {STAND_INS: str(stand_ins), "PSPNET_TRACKING": "off"}


def run(folder: Path, *command: str, **more: str) -> str:
    """Run a command that must succeed, with `more` in its environment. Returns its standard output and error."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def reproduce(folder: Path, *stages: str, **more: str) -> list[str]:
    """Run `dvc repro` for the given stages, or all by default. Returns the stages that ran."""
    run(folder, "dvc", "add", "--quiet", "data/raw", **more)
    return ran(run(folder, "dvc", "repro", *stages, **more))


def ran(output: str) -> list[str]:
    """Return the stages that ran, according to DVC's output."""
    return [step for step in STEPS if f"Running stage '{step}'" in output]


def in_prefect(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / ".pspnet/prefect/prefect.db")) as database:
        return database.execute(query).fetchall()


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every result of every stage, except run records, which differ by machine and time."""
    stages = read_yaml(folder / "dvc.lock")["stages"]
    outs = [item for stage in stages.values() for item in stage["outs"]]
    return {item["path"]: item["md5"] for item in outs if not item["path"].startswith("reports/runs/")}
