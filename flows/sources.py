"""Brings the pipeline's source data up to date: with `dvc add` for data in the checkout, `dvc update` for imports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import get_run_logger

from flows.command import run
from flows.dag import Source
from flows.dvc_text import without_advice
from flows.failure import FAILED, Failure, failure_of
from flows.seen_data import mark_seen
from flows.workplace import Workplace
from pspnet.machine.worktree import dvc_command


def bring_up_to_date(
    workplace: Workplace,
    source: Source,
    environment: Mapping[str, str],
    given: Mapping[str, str] | None,
    has_remote: bool,
) -> Failure | None:
    """Bring a source up to date.

    In a worktree, data given to the run takes precedence, then data in the checkout, then committed data.
    """
    if workplace.is_worktree and given and source.file in given:
        workplace.write({source.file: given[source.file]})
    elif (workplace.checkout / source.name).exists():
        if failure := update(workplace.checkout, source, environment):
            return failure
        mark_seen(workplace.state, workplace.checkout, source)
        if not workplace.is_worktree:
            return None
        workplace.write({source.file: (workplace.checkout / source.file).read_text(encoding="utf-8")})
    if not (workplace.folder / source.file).exists():
        return Failure(FAILED, f"Neither {source.name} nor {source.file} exists. Put the data into {source.name}.")
    fetch = "pull" if has_remote else "checkout"
    return dvc(workplace.folder, environment, fetch, source.file)


def update(checkout: Path, source: Source, environment: Mapping[str, str]) -> Failure | None:
    """Update the source's .dvc file to match the data in the checkout or, for an import, at its origin."""
    if source.is_import:
        return dvc(checkout, environment, "update", source.file)
    return dvc(checkout, environment, "add", source.name)


def push_data(checkout: Path, sources: Sequence[Source], environment: Mapping[str, str]) -> Failure | None:
    """Push the data to the remote, so that other machines can pull it."""
    return dvc(checkout, environment, "push", *(source.file for source in sources))


def dvc(folder: Path, environment: Mapping[str, str], *words: str) -> Failure | None:
    command = dvc_command("--wait-for-lock", *words)
    return failure_of(run(command, folder, environment, without_advice(get_run_logger().info)), None)
