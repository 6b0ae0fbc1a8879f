"""Whether a retraining would find everything as the last one left it. Then `pspnet retrain` starts no flow.

Each question here is one that a task of flows.retrain would ask. Where one cannot be answered the flow runs: it waits
for a lock, tries again when a server is away, and says what is wrong.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from dvc.repo import Repo, lock_repo

from flows.dag import Source, dag_of, opened
from flows.taken import take
from flows.workplace import Workplace
from pspnet import terminal
from pspnet.worktree import environment

Answer = Callable[[], str | None]
COMMAND = ["pspnet", "standing"]


@contextmanager
def registry(workplace: Workplace) -> Iterator[Answer]:
    """What it says of the results here: a headline, or None if it would change something or cannot be asked.

    Its process loads MLflow while DVC looks at the rest, and is ended if the answer is not needed.
    """
    with subprocess.Popen(
        COMMAND, cwd=workplace.folder, env=environment(workplace.folder), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip

        def answer() -> str | None:
            said, notes = process.communicate()
            if process.returncode:
                return None
            terminal.err.print(notes, style="yellow", markup=False, end="")
            return str(json.loads(said)["headline"] or "") or None

        try:
            yield answer
        finally:
            process.kill()


def nothing_to_do(ask: Callable[[Workplace], AbstractContextManager[Answer]] = registry) -> str | None:
    """The headline of such a run; None: there is something to do."""
    if os.environ.get("PREFECT_API_URL"):  # that server shows every run
        return None
    with suppress(Exception):  # whatever a lock, a remote or a server raises
        workplace = Workplace.here()
        if workplace.is_worktree:
            return None
        with workplace.quiet() as quiet:
            if quiet:
                with ask(workplace) as answer:
                    return answer() if _is_unchanged(workplace) else None
    return None


def _is_unchanged(workplace: Workplace) -> bool:
    """One look at data, stages and remote, in one opening of DVC."""
    with opened(workplace.folder) as repo, lock_repo(repo):
        dag = dag_of(repo, workplace.folder)
        unchanged = (
            all(_is_here(workplace, source) for source in dag.sources)
            and not repo.status()
            and all(repo.scm.is_ignored(out.fspath) for out in repo.index.outs if out.stage.is_data_source)
            and (not dag.has_remote or _is_shared(repo))
        )
    if unchanged:
        for source in dag.sources:
            take(workplace.state, workplace.folder, source)
    return unchanged


def _is_here(workplace: Workplace, source: Source) -> bool:
    """An import may have changed where it comes from, which `dvc update` asks."""
    paths = (workplace.folder / source.name, workplace.folder / source.file)
    return not source.is_import and all(path.exists() for path in paths)


def _is_shared(repo: Repo) -> bool:
    """Whether `dvc push --run-cache` would find all of it in the remote."""
    if any(out.remote for out in repo.index.outs):  # `status` leaves out what goes to a remote of its own
        return False
    remote = repo.cloud.get_remote_odb(command="push --run-cache", hash_name="md5-dos2unix")
    return not repo.status(cloud=True) and _runs(repo.cache.legacy) <= _runs(remote)


def _runs(store: Any) -> set[str]:
    """The entries of a run-cache. Their names are digests, and they appear whole or not at all."""
    folder = store.fs.join(store.path, "runs")
    found = store.fs.find(folder) if store.fs.exists(folder) else []
    return {store.fs.as_posix(store.fs.relpath(path, folder)) for path in found}
