"""New data start a retraining: once they have come to rest, and once for the same content."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.states import Completed

from flows.attempts import attempt, done
from flows.dag import Dag, Source, read_dag
from flows.data import push_data, renew
from flows.ending import Trouble
from flows.stages import as_task
from flows.workplace import Workplace
from pspnet.config.reading import read_yaml
from pspnet.outputs import whole_file

RETRAIN = "retrain/retrain"
SETTLED_SECONDS = 60
LOCK = "dvc.lock"


@flow(name="watch", persist_result=False)
def watch(settled_seconds: int = SETTLED_SECONDS, deployment: str = RETRAIN) -> State[Any]:
    """`settled_seconds`: for so long nothing may have changed: before that, somebody may still be copying."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        dag = read_dag(workplace.folder)
        look = as_task("look", _look, retries=5)
        return Completed(message=done(look(workplace, environment, dag, settled_seconds, deployment)))

    return attempt(work)


@dataclass(frozen=True)
class Seen:
    """Of a source: the files as they were looked at last, and the content that was trained on."""

    listing: str = ""
    content: str = ""


def _look(
    workplace: Workplace, environment: Mapping[str, str], dag: Dag, settled_seconds: int, deployment: str
) -> str | Trouble:
    """In the checkout, where data arrive."""
    checkout = workplace.checkout
    memory = workplace.state / "watch.json"
    remembered = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else {}
    seen = {source.name: Seen(**remembered[source.name]) for source in dag.sources if source.name in remembered}
    # Before `dvc add` writes them: else a kill in between would make what is new look as if it were known.
    seen = {source.name: Seen(content=_content(checkout, source)) for source in dag.sources} | seen
    _remember(memory, seen)
    now = dict(seen)
    for source in dag.sources:
        listing, changed_at = _listing(checkout / source.name)
        if not source.is_import and listing in ("", seen[source.name].listing):
            continue
        if time.time() - changed_at < settled_seconds:
            return f"{source.name} changed less than {settled_seconds} s ago."
        if found := renew(checkout, source, environment):
            return found
        now[source.name] = Seen(_listing(checkout / source.name)[0], _content(checkout, source))
    new = [name for name, one in now.items() if one.content not in (seen[name].content, _trained_on(checkout, name))]
    message = "Nothing new."
    if new:
        sources = [source for source in dag.sources if now[source.name].content]
        if dag.has_remote and (found := push_data(checkout, sources, environment)):
            return found
        message = _start(checkout, sources, deployment, new)
    _remember(memory, now)
    return message


def _start(checkout: Path, sources: list[Source], deployment: str, new: list[str]) -> str:
    """The server keeps one run for a key, however often it is asked for."""
    files = {source.file: (checkout / source.file).read_text(encoding="utf-8") for source in sources}
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    run: Any = run_deployment(
        deployment, parameters={"data": files}, idempotency_key=f"data:{key}", timeout=0, as_subflow=False
    )
    get_run_logger().info("New data in %s: %s", ", ".join(new), run.name)
    return f"New data in {', '.join(new)}: {run.name} retrains."


def _listing(folder: Path) -> tuple[str, float]:
    """A digest of names, sizes and times, and when something was changed last (by ctime: copies may bring an mtime)."""
    digest, newest = hashlib.sha256(), 0.0
    if not folder.exists():
        return "", newest
    for parent, folders, names in os.walk(folder):
        folders.sort()
        newest = max(newest, os.stat(parent).st_ctime)  # noqa: PTH116  a million of them
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118
            facts = os.lstat(path)
            newest = max(newest, facts.st_ctime)
            digest.update(f"{os.path.relpath(path, folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest(), newest


def _content(checkout: Path, source: Source) -> str:
    path = checkout / source.file
    return str(read_yaml(path)["outs"][0].get("md5", "")) if path.exists() else ""


def _trained_on(checkout: Path, name: str) -> str | None:
    """By a person, in the checkout."""
    path = checkout / LOCK
    stages = read_yaml(path).get("stages", {}) if path.exists() else {}
    found = [one["md5"] for stage in stages.values() for one in stage.get("deps", []) if one["path"] == name]
    return str(found[0]) if found else None


def _remember(memory: Path, seen: Mapping[str, Seen]) -> None:
    with whole_file(memory) as partial:
        partial.write_text(json.dumps({name: vars(one) for name, one in seen.items()}), encoding="utf-8")
