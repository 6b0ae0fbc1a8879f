"""What a version was made of: the files it keeps, so that it can be traced and made again."""

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
from pspnet.credentials import hidden
from pspnet.tracking.connection import tracking_uri
from pspnet.tracking.pipeline import OF_A_FLOW, circumstances

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARAMS = "params.yaml"
LOCK, DVC, ACCEPTED = "dvc.lock", "dvc.yaml", "accepted.jsonl"
KEPT = (LOCK, DVC, PARAMS, "requirements.lock", ACCEPTED)
DIFF = "changes.diff"
PACKAGES = "packages.txt"
RUNS = "runs"
GIT_SECONDS = 60
TELLING = ("python", "torch", "torchvision", "numpy", "albumentations", "pillow", "pandas", "pyarrow", "mlflow", "dvc")
# DVC writes these while the pipeline runs; they are kept whole.
NO_CHANGES = (":(exclude)dvc.lock", ":(exclude)*.dvc", ":(exclude)accepted.jsonl", ":(exclude).dvc/config")


def collect(folder: Path, data: Sequence[Path], records: Path) -> dict[str, str]:
    """Fill `folder`; returns the tags that say from which commit this is."""
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
    tags = {name: about[name] for name in OF_A_FLOW if name in about}
    commit = about.get("mlflow.source.git.commit")
    if commit is None:
        return tags
    if diff := _diff():
        (folder / DIFF).write_bytes(diff)
    return tags | {"git.commit": commit, "git.dirty": str(bool(diff)).lower()}


def _diff() -> bytes:
    """Against the commit: changed files, and new ones that stages are made of; other new ones may hold secrets."""
    with tempfile.TemporaryDirectory() as temporary:
        index = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}  # the person's own stays as it is
        _git("read-tree", "HEAD", **index)
        _git("add", "--update", "--", ".", *NO_CHANGES, **index)
        listed = _git("ls-files", "-z", "--others", "--exclude-standard", "--", "pspnet", *_named_files(), **index)
        if new := [os.fsdecode(name) for name in listed.split(b"\0") if name]:
            _git("--literal-pathspecs", "add", "--", *new, **index)
        # Not `git diff`: a person's settings (colour, prefixes, lines of context) would change what it prints.
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
    """The .dvc files of the raw data, where they belong in a checkout."""
    return sorted(path.relative_to(kept) for path in kept.rglob("*.dvc"))


def accepted(kept: Path, stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The words that hold for the results in `stages`, of a dvc.lock; those about older results stay out."""
    if not (kept / ACCEPTED).exists():
        return []
    outs = {stage: {out["path"]: out.get("md5") for out in facts.get("outs", [])} for stage, facts in stages.items()}
    entries = [json.loads(line) for line in (kept / ACCEPTED).read_text(encoding="utf-8").splitlines() if line]
    return [entry for entry in entries if entry["results"] == outs.get(entry["stage"])]


@dataclass(frozen=True)
class Change:
    path: str
    added: int | None  # lines; None: it is not text
    removed: int | None


def changes(kept: Path) -> list[Change]:
    """Of the tree against its commit."""
    if not (kept / DIFF).exists():
        return []
    # In a folder of a checkout git leaves out what lies above it.
    command = ["git", "apply", "--numstat", "-z", str((kept / DIFF).resolve())]
    told = subprocess.run(command, cwd=kept.resolve().anchor, capture_output=True, check=True, timeout=GIT_SECONDS)
    return list(_parsed(os.fsdecode(told.stdout)))


def _parsed(told: str) -> Iterator[Change]:
    for line in told.split("\0")[:-1]:
        added, removed, path = line.split("\t", 2)
        yield Change(path, *(None if count == "-" else int(count) for count in (added, removed)))


@cache
def installed() -> Mapping[str, str]:
    """What this process can import; it takes a moment to find out."""
    found = {"python": platform.python_version()}
    for item in importlib.metadata.distributions():
        found.setdefault(_plain(str(item.name)), item.version)  # of two copies the first is imported
    return found


def packages(kept: Path) -> dict[str, str]:
    """Those a version was made with."""
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
    here: str | None  # None: it is not installed

    def __str__(self) -> str:
        return f"{self.name} {self.then} -> {self.here or 'not installed'}"


def other_packages(kept: Path) -> list[OtherPackage]:
    """Those that are not as they were, the telling ones first. Our own is not asked: it comes with the version."""
    here = installed()
    found = [
        OtherPackage(name, version, here.get(name))
        for name, version in packages(kept).items()
        if name != "pspnet" and here.get(name) != version
    ]
    return sorted(found, key=lambda package: (package.name not in TELLING, package.name))


def run_page(client: "MlflowClient", state: Path, run_id: str) -> str | None:
    """Where a person can look at a run, where that is known."""
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
    server = re.sub(r"(://)[^/]*@", r"\1", uri.rstrip("/"))  # without a password that may stand in it
    return f"{server}/#/experiments/{found}/runs/{run_id}"


def stage_runs(client: "MlflowClient", experiments: Sequence[str], records: Path) -> dict[str, str]:
    """Tags: a stage's run, if this MLflow knows it; of a result that came from elsewhere, what it said of its run."""
    tags = {}
    for path in sorted(records.glob("*.json")):
        record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        journal = record.get("journal")
        if journal is None:  # it was not tracked
            continue
        found = client.search_runs(list(experiments), f"tags.`pspnet.journal` = '{journal}'", max_results=1)
        if found:
            tags[f"run.{path.stem}"] = str(found[0].info.run_id)
        else:
            tags[f"run.{path.stem}.elsewhere"] = str(record.get("run_id") or journal)
    return tags
