"""The files that a version includes so that it can be traced and reproduced."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.config.reading import read_yaml
from pspnet.machine.credentials import hidden
from pspnet.tracking.connection import tracking_uri
from pspnet.tracking.pipeline import FLOW_TAGS, circumstances

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARAMS = "params.yaml"
LOCK, DVC, ACCEPTED = "dvc.lock", "dvc.yaml", "accepted.jsonl"
KEPT = (LOCK, DVC, PARAMS, "requirements.lock", ACCEPTED)
DIFF = "changes.diff"
PACKAGES = "packages.txt"
RUNS = "runs"
GIT_SECONDS = 60
MAIN_PACKAGES = (
    "python",
    "torch",
    "torchvision",
    "numpy",
    "albumentations",
    "pillow",
    "pandas",
    "pyarrow",
    "mlflow",
    "dvc",
)
# DVC changes these files while the pipeline runs; versions include complete copies of them.
NO_CHANGES = (":(exclude)dvc.lock", ":(exclude)*.dvc", ":(exclude)accepted.jsonl", ":(exclude).dvc/config")


def collect(folder: Path, data: Sequence[Path], records: Path) -> dict[str, str]:
    """Write the provenance to `folder`. Return the tags that identify the commit."""
    folder.mkdir(parents=True)
    for path in (*map(Path, KEPT), *data):
        if path.exists() and not path.is_absolute() and ".." not in path.parts:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(os.fsencode(hidden(os.fsdecode(path.read_bytes()))))
    if records.is_dir():
        shutil.copytree(records, folder / RUNS)
    packages = "".join(f"{name}=={version}\n" for name, version in sorted(installed().items()))
    (folder / PACKAGES).write_text(packages, encoding="utf-8")
    about = circumstances()
    tags = {name: about[name] for name in FLOW_TAGS if name in about}
    commit = about.get("mlflow.source.git.commit")
    if commit is None:
        return tags
    if diff := _diff():
        (folder / DIFF).write_bytes(diff)
    return tags | {"git.commit": commit, "git.dirty": str(bool(diff)).lower()}


def _diff() -> bytes:
    """Return the diff to the commit. It includes new files only if stages use them; others may contain secrets."""
    with tempfile.TemporaryDirectory() as temporary:
        index = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}  # the user's own index is left unchanged
        _git("read-tree", "HEAD", **index)
        _git("add", "--update", "--", ".", *NO_CHANGES, **index)
        listed = _git("ls-files", "-z", "--others", "--exclude-standard", "--", "pspnet", *_named_files(), **index)
        if new := [os.fsdecode(name) for name in listed.split(b"\0") if name]:
            _git("--literal-pathspecs", "add", "--", *new, **index)
        # Not `git diff`, because the user's settings (color, prefixes, lines of context) would change its output.
        plumbing = ("diff-index", "--cached", "--patch", "--binary", "--full-index", "--no-ext-diff")
        return _git(*plumbing, "HEAD", "--", ".", *NO_CHANGES, **index)


def _named_files() -> list[str]:
    stages = read_yaml(Path(DVC))["stages"] if Path(DVC).exists() else {}
    named = {str(path) for stage in stages.values() for path in stage.get("deps", [])}
    return sorted(f":(literal){path}" for path in named if Path(path).is_file())


def _git(*arguments: str, **environment: str) -> bytes:
    return subprocess.run(
        ["git", *arguments], env={**os.environ, **environment}, capture_output=True, check=True, timeout=GIT_SECONDS
    ).stdout


def data_files(kept: Path) -> list[Path]:
    """Return the paths of the raw data's .dvc files, relative to the checkout."""
    return sorted(path.relative_to(kept) for path in kept.rglob("*.dvc"))


def accepted(kept: Path, stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the acceptances that apply to the results in `stages`, which come from a dvc.lock."""
    if not (kept / ACCEPTED).exists():
        return []
    outs = {stage: {out["path"]: out.get("md5") for out in facts.get("outs", [])} for stage, facts in stages.items()}
    entries = [json.loads(line) for line in (kept / ACCEPTED).read_text(encoding="utf-8").splitlines() if line]
    return [entry for entry in entries if entry["results"] == outs.get(entry["stage"])]


@dataclass(frozen=True)
class Change:
    path: str
    added: int | None  # number of lines; None if the file is not text
    removed: int | None


def changes(kept: Path) -> list[Change]:
    """Return how the working tree differed from its commit."""
    if not (kept / DIFF).exists():
        return []
    # If run in a subfolder of a checkout, git would leave out everything above the subfolder.
    command = ["git", "apply", "--numstat", "-z", str((kept / DIFF).resolve())]
    parsed = subprocess.run(command, cwd=kept.resolve().anchor, capture_output=True, check=True, timeout=GIT_SECONDS)
    return list(_parsed(os.fsdecode(parsed.stdout)))


def _parsed(numstat: str) -> Iterator[Change]:
    for line in numstat.split("\0")[:-1]:
        added, removed, path = line.split("\t", 2)
        yield Change(path, *(None if count == "-" else int(count) for count in (added, removed)))


@cache
def installed() -> Mapping[str, str]:
    """Return the packages that this process can import. This takes a moment."""
    found = {"python": platform.python_version()}
    for item in importlib.metadata.distributions():
        found.setdefault(_plain(str(item.name)), item.version)  # of two copies, Python imports the first
    return found


def packages(kept: Path) -> dict[str, str]:
    """Return the packages that were installed when a version was registered."""
    if not (kept / PACKAGES).exists():
        return {}
    lines = (kept / PACKAGES).read_text(encoding="utf-8").split()
    return {_plain(name): version for name, _, version in (line.partition("==") for line in lines)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class OtherPackage:
    name: str
    then: str
    here: str | None  # None if not installed

    def __str__(self) -> str:
        return f"{self.name} {self.then} -> {self.here or 'not installed'}"


def other_packages(kept: Path) -> list[OtherPackage]:
    """Return packages that differ on this machine, main packages first. pspnet is left out: the version includes it."""
    here = installed()
    found = [
        OtherPackage(name, version, here.get(name))
        for name, version in packages(kept).items()
        if name != "pspnet" and here.get(name) != version
    ]
    return sorted(found, key=lambda package: (package.name not in MAIN_PACKAGES, package.name))


def run_page(client: "MlflowClient", state: Path, run_id: str) -> str | None:
    """Return the address of a run's MLflow page, or None if there is no server or no such run."""
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(state)
    if not uri.startswith("http"):
        return None
    try:
        found = client.get_run(run_id).info.experiment_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    server = re.sub(r"(://)[^/]*@", r"\1", uri.rstrip("/"))  # removes any password
    return f"{server}/#/experiments/{found}/runs/{run_id}"


def stage_runs(client: "MlflowClient", experiments: Sequence[str], records: Path) -> dict[str, str]:
    """Return tags with each stage's run, as found in this MLflow or else as listed in the stage's run record."""
    tags = {}
    for path in sorted(records.glob("*.json")):
        record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        journal = record.get("journal")
        if journal is None:  # not tracked
            continue
        found = client.search_runs(list(experiments), f"tags.`pspnet.journal` = '{journal}'", max_results=1)
        if found:
            tags[f"run.{path.stem}"] = str(found[0].info.run_id)
        else:
            tags[f"run.{path.stem}.elsewhere"] = str(record.get("run_id") or journal)
    return tags
