"""The flow that starts one retraining run for new data, once the files have stopped changing."""

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

from flows.dag import Dag, Source, read_dag
from flows.failure import Failure
from flows.flow_attempt import attempt, result_of
from flows.seen_data import SeenData, content_digest, seen_data
from flows.sources import push_data, update
from flows.tasks import as_task
from flows.workplace import Workplace

RETRAIN = "retrain/retrain"
SETTLED_SECONDS = 60


@flow(name="watch", persist_result=False)
def watch(settled_seconds: int = SETTLED_SECONDS, deployment: str = RETRAIN) -> State[Any]:
    """Start retraining if there is new data.

    `settled_seconds`: how long the files must have been unchanged, because someone may still be copying them.
    """

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        dag = read_dag(workplace.folder)
        check = as_task("check", _check_checkout, retries=5)
        return Completed(message=result_of(check(workplace, environment, dag, settled_seconds, deployment)))

    return attempt(work)


def _check_checkout(
    workplace: Workplace, environment: Mapping[str, str], dag: Dag, settled_seconds: int, deployment: str
) -> str | Failure:
    """Check for new data in the checkout, because that is where new data arrives."""
    checkout = workplace.checkout
    return check_for_new_data(
        workplace,
        dag,
        settled_seconds,
        bring_in=lambda source: update(checkout, source, environment),
        push=lambda sources: push_data(checkout, sources, environment),
        start=lambda sources, new: _start(checkout, sources, deployment, new),
    )


def check_for_new_data(
    workplace: Workplace,
    dag: Dag,
    settled_seconds: int,
    bring_in: Callable[[Source], Failure | None],
    push: Callable[[list[Source]], Failure | None],
    start: Callable[[list[Source], list[str]], str],
) -> str | Failure:
    """Start retraining if there is new data, and return a message.

    This function makes all decisions. The three functions that it is given do the work.
    """
    checkout = workplace.checkout
    with seen_data(workplace.state) as seen:
        listings = {name: data.listing for name, data in seen.items()}
    checked = {}
    for source in dag.sources:
        listing, changed_at = _listing(checkout / source.name)
        if not source.is_import and listing in ("", listings.get(source.name)):
            continue
        if time.time() - changed_at < settled_seconds:
            return f"{source.name} changed less than {settled_seconds} s ago."
        if failure := bring_in(source):
            return failure
        checked[source] = _listing(checkout / source.name)[0]
    with seen_data(workplace.state) as seen:  # read again, because a scheduled run may have started in the meantime
        now = {source.name: SeenData(listing, content_digest(checkout, source)) for source, listing in checked.items()}
        new = [name for name, data in now.items() if data.content != seen.get(name, SeenData()).content]
        message = "No new data."
        if new:
            sources = [source for source in dag.sources if (checkout / source.file).exists()]
            if dag.has_remote and (failure := push(sources)):
                return failure
            message = start(sources, new)
        seen.update(now)
    return message


def _start(checkout: Path, sources: list[Source], deployment: str, new: list[str]) -> str:
    """Start retraining. Thanks to the idempotency key, repeated requests for the same data start only one run."""
    files = {source.file: (checkout / source.file).read_text(encoding="utf-8") for source in sources}
    key = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    run: Any = run_deployment(
        deployment, parameters={"data": files}, idempotency_key=f"data:{key}", timeout=0, as_subflow=False
    )
    get_run_logger().info("New data in %s: %s", ", ".join(new), run.name)
    return f"New data in {', '.join(new)}: started {run.name}."


def _listing(folder: Path) -> tuple[str, float]:
    """A digest of the files' names, sizes and times, and the time of the last change.

    That time is a ctime, because a copied file may keep an old mtime.
    """
    if not folder.exists():
        return "", 0.0
    if folder.is_file():
        facts = folder.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}", facts.st_ctime
    digest, newest = hashlib.sha256(), 0.0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        newest = max(newest, os.stat(parent).st_ctime)  # noqa: PTH116  there may be a million of them
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118
            facts = os.lstat(path)
            newest = max(newest, facts.st_ctime)
            digest.update(f"{os.path.relpath(path, folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest(), newest
