"""A stage of dvc.yaml as a task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from flows.commands import run, without_advice
from flows.dag import Stage
from flows.ending import TEMPORARY, Trouble, trouble
from flows.progress import Progress
from flows.workplace import Workplace
from pspnet.worktree import dvc_command

EXITS = Path(".pspnet/exit")
RETRY_SECONDS = [5.0, 30.0, 120.0]


@dataclass(frozen=True)
class Outcome:
    """Of a stage: what is shown of it, and handed from one process to the next as JSON."""

    stage: str
    how: str  # ran | cached | unchanged
    seconds: float
    where: str = "here"


def may_end_otherwise(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return state.name in TEMPORARY


def as_task(name: str, function: Callable[..., Any], retries: int = 0) -> Callable[..., State[Any]]:
    """Prefect keeps nothing of it: DVC is the cache. Trouble that is returned is a failure without a traceback."""

    @task(
        name=name,
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=may_end_otherwise,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def work(*arguments: Any) -> Any:
        found = function(*arguments)
        return Failed(name=found.name, message=f"{name}: {found.message}") if isinstance(found, Trouble) else found

    def run(*arguments: Any, wait_for: Sequence[State[Any]] = ()) -> State[Any]:
        state: State[Any] = work(*arguments, wait_for=wait_for, return_state=True)
        return state

    return run


def reproduce(workplace: Workplace, stage: Stage, environment: Mapping[str, str], pull: bool) -> Outcome | Trouble:
    """`dvc repro` of this one stage: run, or restored from what any machine has made of the same inputs."""
    exit_file = workplace.folder / EXITS / f"{stage.name}.json"
    exit_file.unlink(missing_ok=True)
    options = ["--single-item", *(["--pull"] if pull else [])]
    command = dvc_command("--wait-for-lock", "repro", *options, stage.name)
    progress, log = Progress(stage.name), without_advice(get_run_logger().info)
    ran = False

    def tell(line: str) -> None:
        nonlocal ran
        ran = ran or line == f"Running stage '{stage.name}':"
        log(line)
        progress.read(line)

    ended = run(command, workplace.folder, environment, tell, stage.timeout_seconds)
    found = trouble(ended, stage.timeout_seconds, exit_file)
    if found:
        return found
    if ran:
        progress.finish()
    return Outcome(stage.name, "ran" if ran else "cached", ended.seconds)


def unchanged(stage: Stage) -> Outcome:
    get_run_logger().info("Has made what it would make again.")
    return Outcome(stage.name, "unchanged", 0.0)
