"""`pspnet doctor`: check what the pipeline needs, and explain what to fix."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.markup import escape
from rich.table import Table

from pspnet.config.params import load_params
from pspnet.config.registry import DEMO_MODEL
from pspnet.demo.streets import is_synthetic
from pspnet.errors import UserError
from pspnet.machine import terminal
from pspnet.machine.credentials import hidden
from pspnet.machine.worktree import mend

FREE_GB = 5
PACKAGES = ("torch", "torchvision", "albumentations", "dvc", "mlflow", "prefect", "pyarrow", "pandas")
MARKS = {"good": "[green]good[/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]"}


@dataclass(frozen=True)
class Finding:
    subject: str
    verdict: Literal["good", "warning", "problem"]  # problem: the pipeline cannot run until it is fixed
    found: str
    fix: str = ""


def examine(params: Path, raw: Path, quick: bool) -> None:
    mend(Path.cwd())
    checks: list[Callable[[], Iterator[Finding]]] = [lambda: _params(params), lambda: _raw(params, raw)]
    if not quick:
        checks += [_git, _dvc, _disk, _devices, _versions]
    findings = [finding for check in checks for finding in check()]
    problems = [finding for finding in findings if finding.verdict == "problem"]
    if quick:
        for finding in problems:
            terminal.err.print(f"{finding.found}\n{finding.fix}".strip(), style="red", markup=False)
    else:
        table = Table("", "", "found", "what to do", show_edge=False, pad_edge=False)
        for finding in findings:
            table.add_row(finding.subject, MARKS[finding.verdict], escape(hidden(finding.found)), escape(finding.fix))
        terminal.out.print(table)
    if problems:
        raise typer.Exit(1)


def can_run(params: Path, raw: Path) -> bool:
    """Whether the pipeline can run: whether `pspnet doctor --quick` finds no problems."""
    findings = [*_params(params), *_raw(params, raw)]
    return all(finding.verdict != "problem" for finding in findings)


def _params(path: Path) -> Iterator[Finding]:
    try:
        params = load_params(path)
    except UserError as error:
        yield Finding("params", "problem", str(error))
    else:
        yield Finding("params", "good", f"complete; the model is {params.registry.model}")


def _raw(path: Path, raw: Path) -> Iterator[Finding]:
    if not raw.is_dir() or not any(raw.iterdir()):
        fix = "`make demo` draws demo data; for your own data, put images/ and masks/ there."
        yield Finding("raw data", "problem", f"{raw} is empty.", fix)
        return
    try:
        demo_params = load_params(path).registry.model == DEMO_MODEL
    except UserError:
        return
    if demo_params and not is_synthetic(raw):
        fix = "`pspnet data inspect data/raw --write`, `pspnet plan --minutes 30`, then `make retrain`."
        yield Finding("raw data", "problem", f"{raw} contains your own data, but {path} is still the demo's.", fix)
    else:
        yield Finding("raw data", "good", f"{raw}, {'synthetic' if is_synthetic(raw) else 'your own'}")


def _git() -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield Finding("git", "problem", "git is not installed", "Install git.")
        return
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        yield Finding("git", "problem", "this is not a git checkout with a commit", "git init, then a first commit")
        return
    dirty = subprocess.run(
        ["git", "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = f"at {head.stdout.strip()}" + (f", {len(dirty)} changed or new files" if dirty else "")
    fix = "Commit, so that a model can be traced to a commit." if dirty else ""
    yield Finding("git", "warning" if dirty else "good", found, fix)


def _dvc() -> Iterator[Finding]:
    command = [sys.executable, "-m", "dvc", "remote", "list"]
    remotes = subprocess.run(command, capture_output=True, text=True, check=False)
    if remotes.returncode:
        yield Finding("DVC", "problem", remotes.stderr.strip() or "not usable", "dvc init")
    elif not remotes.stdout.strip():
        yield Finding(
            "DVC remote", "warning", "none: results stay on this machine", "dvc remote add --default team s3://..."
        )
    else:
        yield Finding("DVC remote", "good", ", ".join(" ".join(line.split()) for line in remotes.stdout.splitlines()))


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 1e9
    enough = free > FREE_GB
    fix = "" if enough else "Raw and prepared data are stored twice: in the checkout and in DVC's cache."
    yield Finding("disk", "good" if enough else "warning", f"{free:,.0f} GB free", fix)


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield Finding(
                "device", "good", f"cuda:{number}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            )
    else:
        fix = "Enough for the demo and small networks; a full PSPNet needs a GPU."
        yield Finding("device", "warning", f"CPU, {os.cpu_count()} cores, no GPU that torch can use", fix)


def _versions() -> Iterator[Finding]:
    found = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    yield Finding("versions", "good", f"Python {sys.version.split()[0]}, {found}")
