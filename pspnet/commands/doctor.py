"""`pspnet doctor`: what the pipeline needs, what was found, what to do."""

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

from pspnet import terminal
from pspnet.config.params import load_params
from pspnet.config.registry import DEMO_MODEL
from pspnet.credentials import hidden
from pspnet.dataset.synthetic import is_synthetic
from pspnet.errors import UserError
from pspnet.worktree import mend

FREE_GB = 5
PACKAGES = ("torch", "torchvision", "albumentations", "dvc", "mlflow", "prefect", "pyarrow", "pandas")
MARKS = {"good": "[green]good[/]", "look": "[yellow]look[/]", "mend": "[red]mend[/]"}


@dataclass(frozen=True)
class Finding:
    what: str
    verdict: Literal["good", "look", "mend"]  # mend: the pipeline cannot run like this
    found: str
    fix: str = ""


def examine(params: Path, raw: Path, quick: bool) -> None:
    mend(Path.cwd())
    checks: list[Callable[[], Iterator[Finding]]] = [lambda: _params(params), lambda: _raw(params, raw)]
    if not quick:
        checks += [_git, _dvc, _disk, _devices, _versions]
    findings = [finding for check in checks for finding in check()]
    wrong = [finding for finding in findings if finding.verdict == "mend"]
    if quick:
        for finding in wrong:
            terminal.err.print(f"{finding.found}\n{finding.fix}".strip(), style="red", markup=False)
    else:
        table = Table("", "", "found", "what to do", show_edge=False, pad_edge=False)
        for finding in findings:
            table.add_row(finding.what, MARKS[finding.verdict], escape(hidden(finding.found)), escape(finding.fix))
        terminal.out.print(table)
    if wrong:
        raise typer.Exit(1)


def can_run(params: Path, raw: Path) -> bool:
    """Whether `--quick` finds nothing to mend."""
    findings = [*_params(params), *_raw(params, raw)]
    return all(finding.verdict != "mend" for finding in findings)


def _params(path: Path) -> Iterator[Finding]:
    try:
        params = load_params(path)
    except UserError as error:
        yield Finding("params", "mend", str(error))
    else:
        yield Finding("params", "good", f"complete; the model is {params.registry.model}")


def _raw(path: Path, raw: Path) -> Iterator[Finding]:
    if not raw.is_dir() or not any(raw.iterdir()):
        fix = "`make demo` draws something to try; for your own data put images/ and masks/ there."
        yield Finding("raw data", "mend", f"{raw} holds nothing.", fix)
        return
    try:
        demo_params = load_params(path).registry.model == DEMO_MODEL
    except UserError:
        return
    if demo_params and not is_synthetic(raw):
        fix = "`pspnet use recipes/start.yaml`, name your classes in params.yaml, then `make retrain`."
        yield Finding("raw data", "mend", f"{raw} holds your own data, and {path} is still the demo's.", fix)
    else:
        yield Finding("raw data", "good", f"{raw}, {'synthetic' if is_synthetic(raw) else 'your own'}")


def _git() -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield Finding("git", "mend", "git is not installed", "Install git.")
        return
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        yield Finding("git", "mend", "this is no git checkout with a commit", "git init, then a first commit")
        return
    dirty = subprocess.run(
        ["git", "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = f"at {head.stdout.strip()}" + (f", {len(dirty)} changed or new files" if dirty else "")
    fix = "Commit, so that a model can be traced to a commit." if dirty else ""
    yield Finding("git", "look" if dirty else "good", found, fix)


def _dvc() -> Iterator[Finding]:
    command = [sys.executable, "-m", "dvc", "remote", "list"]
    remotes = subprocess.run(command, capture_output=True, text=True, check=False)
    if remotes.returncode:
        yield Finding("DVC", "mend", remotes.stderr.strip() or "not usable", "dvc init")
    elif not remotes.stdout.strip():
        yield Finding(
            "DVC remote", "look", "none: results stay on this machine", "dvc remote add --default team s3://..."
        )
    else:
        yield Finding("DVC remote", "good", ", ".join(" ".join(line.split()) for line in remotes.stdout.splitlines()))


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 1e9
    enough = free > FREE_GB
    fix = "" if enough else "Raw and prepared data are kept twice: in the checkout and in DVC's cache."
    yield Finding("disk", "good" if enough else "look", f"{free:,.0f} GB free", fix)


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            yield Finding(
                "device", "good", f"cuda:{number}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            )
    else:
        fix = "Enough for the demo and small networks; a full PSPNet wants a GPU."
        yield Finding("device", "look", f"CPU, {os.cpu_count()} cores, no GPU that torch can use", fix)


def _versions() -> Iterator[Finding]:
    found = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    yield Finding("versions", "good", f"Python {sys.version.split()[0]}, {found}")
