"""Turns functions into Prefect tasks, and runs one stage with `dvc repro`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from flows.command import run
from flows.dag import Stage
from flows.dvc_text import without_advice
from flows.failure import TEMPORARY, Failure, failure_of
from flows.progress import Progress
from flows.workplace import Workplace
from pspnet.machine.worktree import dvc_command

RETRY_SECONDS = [5.0, 30.0, 120.0]


@dataclass(frozen=True)
class StageResult:
    stage: str
    how: str  # ran | cached | unchanged
    seconds: float
    where: str = "here"


def is_temporary(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return state.name in TEMPORARY


def as_task(name: str, function: Callable[..., Any], retries: int = 0) -> Callable[..., State[Any]]:
    """Turn a function into a Prefect task. Prefect does not cache anything, because DVC is the cache.

    If the function returns a Failure, the task fails with the message of the Failure and without a traceback.
    """

    @task(
        name=name,
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=is_temporary,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def work(*arguments: Any) -> Any:
        result = function(*arguments)
        if isinstance(result, Failure):
            return Failed(name=result.name, message=f"{name}: {result.message}")
        return result

    def run(*arguments: Any, wait_for: Sequence[State[Any]] = ()) -> State[Any]:
        state: State[Any] = work(*arguments, wait_for=wait_for, return_state=True)
        return state

    return run


def reproduce(workplace: Workplace, stage: Stage, environment: Mapping[str, str], pull: bool) -> StageResult | Failure:
    """Run the stage with `dvc repro`, or restore its results if any machine has run the stage on the same inputs."""
    options = ["--single-item", *(["--pull"] if pull else [])]
    command = dvc_command("--wait-for-lock", "repro", *options, stage.name)
    progress, log = Progress(stage.name), without_advice(get_run_logger().info)
    ended = run(command, workplace.folder, environment, log, stage.timeout_seconds, progress.show)
    if failure := failure_of(ended, stage.timeout_seconds):
        return failure
    if ran := ended.end is not None:  # DVC does not run the command if the results are in its cache
        progress.finish()
    return StageResult(stage.name, "ran" if ran else "cached", ended.seconds)


def unchanged(stage: Stage) -> StageResult:
    get_run_logger().info("Unchanged; skipped.")
    return StageResult(stage.name, "unchanged", 0.0)
