"""New data start a retraining: once they have come to rest, and once for the same content."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
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
from flows.taken import Taken, content, memory
from flows.workplace import Workplace

RETRAIN = "retrain/retrain"
SETTLED_SECONDS = 60


@flow(name="watch", persist_result=False)
def watch(settled_seconds: int = SETTLED_SECONDS, deployment: str = RETRAIN) -> State[Any]:
    """`settled_seconds`: for so long nothing may have changed: before that, somebody may still be copying."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        dag = read_dag(workplace.folder)
        look = as_task("look", _look, retries=5)
        return Completed(message=done(look(workplace, environment, dag, settled_seconds, deployment)))

    return attempt(work)


def _look(
    workplace: Workplace, environment: Mapping[str, str], dag: Dag, settled_seconds: int, deployment: str
) -> str | Trouble:
    """In the checkout, where data arrive."""
    checkout = workplace.checkout
    return look(
        workplace,
        dag,
        settled_seconds,
        bring_in=lambda source: renew(checkout, source, environment),
        push=lambda sources: push_data(checkout, sources, environment),
        start=lambda sources, new: _start(checkout, sources, deployment, new),
    )


def look(
    workplace: Workplace,
    dag: Dag,
    settled_seconds: int,
    bring_in: Callable[[Source], Trouble | None],
    push: Callable[[list[Source]], Trouble | None],
    start: Callable[[list[Source], list[str]], str],
) -> str | Trouble:
    """Start a retraining if there are new data, and say so. The three functions do the work; here it is decided."""
    checkout = workplace.checkout
    with memory(workplace.state) as taken:
        listings = {name: one.listing for name, one in taken.items()}
    looked_at = {}
    for source in dag.sources:
        listing, changed_at = _listing(checkout / source.name)
        if not source.is_import and listing in ("", listings.get(source.name)):
            continue
        if time.time() - changed_at < settled_seconds:
            return f"{source.name} changed less than {settled_seconds} s ago."
        if found := bring_in(source):
            return found
        looked_at[source] = _listing(checkout / source.name)[0]
    with memory(workplace.state) as taken:  # a retraining by the clock may have taken them in between
        now = {source.name: Taken(listing, content(checkout, source)) for source, listing in looked_at.items()}
        new = [name for name, one in now.items() if one.content != taken.get(name, Taken()).content]
        message = "Nothing new."
        if new:
            sources = [source for source in dag.sources if (checkout / source.file).exists()]
            if dag.has_remote and (found := push(sources)):
                return found
            message = start(sources, new)
        taken.update(now)
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
    if not folder.exists():
        return "", 0.0
    if folder.is_file():
        facts = folder.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}", facts.st_ctime
    digest, newest = hashlib.sha256(), 0.0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        newest = max(newest, os.stat(parent).st_ctime)  # noqa: PTH116  a million of them
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118
            facts = os.lstat(path)
            newest = max(newest, facts.st_ctime)
            digest.update(f"{os.path.relpath(path, folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest(), newest
