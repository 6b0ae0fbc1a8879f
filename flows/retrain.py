"""The flow that updates the data, runs every stage of dvc.yaml, registers the model and pushes the results."""

from collections.abc import Callable
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.command import run
from flows.dag import Dag, Stage, changed_stages, read_dag
from flows.flow_attempt import attempt, result_of
from flows.registry import registry_command
from flows.remote import push
from flows.sources import bring_up_to_date
from flows.summary import RetrainSummary
from flows.tasks import as_task, unchanged
from flows.team.parts import clear_parts, reproduce_here
from flows.team.pools import other_pool, reproduce_in_pool
from flows.workplace import PARAMS, Workplace
from pspnet.config.params import load_params
from pspnet.errors import UserError
from pspnet.machine.worktree import mend


@flow(name="retrain", persist_result=False)
def retrain(overrides: dict[str, Any] | None = None, data: dict[str, str] | None = None) -> State[Any]:
    """Retrain the model.

    `overrides`: parameters for this run only, such as {"finetune.optimizer.learning_rate": 0.01}.
    `data`: names and contents of .dvc files, to train on data other than the checkout's.
    """
    return attempt(lambda workplace, environment: _retrain(workplace, environment, data), overrides)


def _retrain(workplace: Workplace, environment: dict[str, str], data: dict[str, str] | None) -> State[Any]:
    load_params(workplace.folder / PARAMS)
    mend(workplace.folder)
    clear_parts(workplace)
    dag = read_dag(workplace.folder)
    if in_place := all((workplace.folder / source.name).exists() for source in dag.sources):
        _examine(workplace, environment)
    for source in dag.sources:
        update = as_task(source.name, bring_up_to_date, retries=5)
        result_of(update(workplace, source, environment, data, dag.has_remote))
    if not in_place:
        _examine(workplace, environment)
    summary = _stages(workplace, environment, read_dag(workplace.folder))
    register = as_task("register", registry_command, retries=3)
    summary.registered = result_of(register(workplace, environment, "register", "--promote"))
    summary.publish()
    if dag.has_remote:
        result_of(as_task("push", push, retries=3)(workplace, environment))
    return Completed(message=summary.headline)


def _stages(workplace: Workplace, environment: dict[str, str], dag: Dag) -> RetrainSummary:
    """Run the stages one at a time, as DVC does, because two stages at once in the same folder would conflict."""
    changed = changed_stages(workplace.folder)
    summary = RetrainSummary(workplace.folder)
    states: dict[str, State[Any]] = {}
    for stage in dag.stages:
        is_changed = stage.name in changed or any(summary.is_new(name) for name in stage.upstream)
        states[stage.name] = _task(stage, is_changed)(
            workplace, stage, environment, dag, wait_for=[states[name] for name in stage.upstream if name in states],
        )  # fmt: skip
        summary.add(result_of(states[stage.name]))
    return summary


def _task(stage: Stage, is_changed: bool) -> Callable[..., State[Any]]:
    def work(workplace: Workplace, stage: Stage, environment: dict[str, str], dag: Dag) -> Any:
        if not is_changed:
            return unchanged(stage)
        if pool := other_pool(stage):
            return reproduce_in_pool(workplace, stage, pool, dag.sources, environment)
        return reproduce_here(workplace, stage, dag, environment)

    return as_task(stage.name, work, stage.retries)


def _examine(workplace: Workplace, environment: dict[str, str]) -> None:
    """Report a user's mistakes before any work starts."""
    ended = run(["pspnet", "doctor", "--quick"], workplace.folder, environment, on_line=lambda line: None)
    if ended.status:
        raise UserError([], ended.output)
