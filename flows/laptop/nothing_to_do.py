"""Checks whether retraining would change nothing. If so, `pspnet retrain` does not start a flow.

Each check here mirrors a task of flows.retrain. If a check is not possible, the flow runs, because the flow waits for
locks, retries when a server is down, and reports what is wrong.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from dvc.repo import Repo, lock_repo

from flows.dag import Source, dag_of, open_repo
from flows.seen_data import mark_seen
from flows.workplace import Workplace
from pspnet.machine import events, terminal
from pspnet.machine.worktree import environment

Answer = Callable[[], str | None]
COMMAND = ["pspnet", "standing"]


@contextmanager
def ask_registry(workplace: Workplace) -> Iterator[Answer]:
    """Ask the registry, in another process, about this checkout's results. Yields a function that returns the answer.

    The answer is a headline, or None if registering would change something or the registry cannot be reached. The other
    process loads MLflow while DVC checks the rest, and is killed if the answer is not needed.
    """
    log = events.new_log(workplace.state)
    with subprocess.Popen(
        COMMAND, cwd=workplace.folder, env=environment(workplace.folder) | {events.VARIABLE: str(log)}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip

        def answer() -> str | None:
            _, notes = process.communicate()
            if process.returncode:
                return None
            terminal.err.print(notes, style="yellow", markup=False, end="")
            results = [event["headline"] for event, _ in events.read(log) if event["kind"] == "result"]
            return results[-1] if results else None

        try:
            yield answer
        finally:
            process.kill()
            process.wait()
            events.discard(log)


def nothing_to_do(ask: Callable[[Workplace], AbstractContextManager[Answer]] = ask_registry) -> str | None:
    """Return a headline if retraining would change nothing, otherwise None."""
    if os.environ.get("PREFECT_API_URL"):  # users expect to see every run on this server, so the flow always runs
        return None
    with suppress(Exception):  # on any error from a lock, a remote or a server, the flow runs and handles it
        workplace = Workplace.here()
        if workplace.is_worktree:
            return None
        with workplace.quiet() as quiet:
            if quiet:
                with ask(workplace) as answer:
                    return answer() if _is_unchanged(workplace) else None
    return None


def _is_unchanged(workplace: Workplace) -> bool:
    """Whether data, stages and remote are all up to date. All checks share one DVC repository object."""
    with open_repo(workplace.folder) as repo, lock_repo(repo):
        dag = dag_of(repo, workplace.folder)
        unchanged = (
            all(_is_here(workplace, source) for source in dag.sources)
            and not repo.status()
            and all(repo.scm.is_ignored(out.fspath) for out in repo.index.outs if out.stage.is_data_source)
            and (not dag.has_remote or _is_shared(repo))
        )
    if unchanged:
        for source in dag.sources:
            mark_seen(workplace.state, workplace.folder, source)
    return unchanged


def _is_here(workplace: Workplace, source: Source) -> bool:
    """Whether the data and its .dvc file are both present.

    False for imports, because only `dvc update` sees changes at the origin of the import.
    """
    paths = (workplace.folder / source.name, workplace.folder / source.file)
    return not source.is_import and all(path.exists() for path in paths)


def _is_shared(repo: Repo) -> bool:
    """Whether `dvc push --run-cache` would have nothing to push."""
    if any(out.remote for out in repo.index.outs):  # `status` skips outputs that have their own remote
        return False
    remote = repo.cloud.get_remote_odb(command="push --run-cache", hash_name="md5-dos2unix")
    return not repo.status(cloud=True) and _runs(repo.cache.legacy) <= _runs(remote)


def _runs(store: Any) -> set[str]:
    """The names of the entries in a run-cache. They are digests, and an entry appears only once it is complete."""
    folder = store.fs.join(store.path, "runs")
    found = store.fs.find(folder) if store.fs.exists(folder) else []
    return {store.fs.as_posix(store.fs.relpath(path, folder)) for path in found}
