"""What the pipeline starts from: `dvc add` for what lies in the checkout, `dvc update` for what was imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import get_run_logger

from flows.commands import run, without_advice
from flows.dag import Source
from flows.ending import FAILED, Trouble, trouble
from flows.taken import take
from flows.workplace import Workplace
from pspnet.worktree import dvc_command


def bring_up_to_date(
    workplace: Workplace,
    source: Source,
    environment: Mapping[str, str],
    given: Mapping[str, str] | None,
    has_remote: bool,
) -> Trouble | None:
    """In a worktree: the given data, else what lies in the checkout, else what was committed."""
    if workplace.is_worktree and given and source.file in given:
        workplace.write({source.file: given[source.file]})
    elif (workplace.checkout / source.name).exists():
        if found := renew(workplace.checkout, source, environment):
            return found
        take(workplace.state, workplace.checkout, source)
        if not workplace.is_worktree:
            return None
        workplace.write({source.file: (workplace.checkout / source.file).read_text(encoding="utf-8")})
    if not (workplace.folder / source.file).exists():
        return Trouble(FAILED, f"There is neither {source.name} nor {source.file}. Put the data into {source.name}.")
    fetch = "pull" if has_remote else "checkout"
    return dvc(workplace.folder, environment, fetch, source.file)


def renew(checkout: Path, source: Source, environment: Mapping[str, str]) -> Trouble | None:
    """Its .dvc file says afterwards what lies there now, or what it was imported from has now."""
    if source.is_import:
        return dvc(checkout, environment, "update", source.file)
    return dvc(checkout, environment, "add", source.name)


def push_data(checkout: Path, sources: Sequence[Source], environment: Mapping[str, str]) -> Trouble | None:
    """For machines that have not got them."""
    return dvc(checkout, environment, "push", *(source.file for source in sources))


def dvc(folder: Path, environment: Mapping[str, str], *words: str) -> Trouble | None:
    command = dvc_command("--wait-for-lock", *words)
    return trouble(run(command, folder, environment, without_advice(get_run_logger().info)), None)
