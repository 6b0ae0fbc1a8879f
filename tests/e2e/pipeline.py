"""A checkout of the project in a folder of its own, with parameters so small that the whole pipeline takes seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pspnet.config.reading import read_yaml
from tests.parameters import ROOT, changed

BIN = Path(sys.executable).parent
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
    """The files git tracks, as they are now, under git and DVC again."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and name not in ("dvc.lock", "data/raw.dvc", "accepted.jsonl"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    write_params(folder, **(TINY | changes))
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", "start")
    return folder


def clone(source: Path, folder: Path) -> Path:
    """What another machine would have: what is committed, and nothing else."""
    folder.parent.mkdir(exist_ok=True)
    run(source, "git", "clone", "--quiet", str(source), str(folder))
    return folder


def write_params(folder: Path, **changes: Any) -> None:
    (folder / "params.yaml").write_text(
        yaml.safe_dump(changed(read_yaml(folder / "params.yaml"), changes), sort_keys=False)
    )


def environment(folder: Path) -> dict[str, str]:
    """Commands find this checkout's package, not the one that is installed."""
    return os.environ | {
        "SHELL": "/bin/sh",  # by which DVC starts the stages; where it is dash, it stays between the two
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PSPNET_LOADER_WORKERS": "1",
        "DVC_NO_ANALYTICS": "1",
    }


def run(folder: Path, *command: str, timeout: float = 300) -> str:
    """Standard output and error of a command that must succeed."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def reproduce(folder: Path) -> list[str]:
    """The stages that ran."""
    run(folder, "dvc", "add", "--quiet", "data/raw")
    output = run(folder, "dvc", "repro")
    return [step for step in STEPS if f"Running stage '{step}'" in output]


def digests(folder: Path) -> dict[str, str]:
    """Result -> digest, for every result of every stage. Run records are none: they differ by machine and time."""
    stages = read_yaml(folder / "dvc.lock")["stages"]
    outs = [item for stage in stages.values() for item in stage["outs"]]
    return {item["path"]: item["md5"] for item in outs if not item["path"].startswith("reports/runs/")}
