"""The flow: data brought up to date, every stage of dvc.yaml, the registry, and the results shared."""

from collections.abc import Callable
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.attempts import attempt, done
from flows.commands import run
from flows.dag import Dag, Stage, changed_stages, read_dag
from flows.data import bring_up_to_date
from flows.parts import clear, reproduce_here
from flows.pools import elsewhere, reproduce_elsewhere
from flows.registry import pspnet
from flows.remote import push
from flows.stages import as_task, unchanged
from flows.summary import Summary
from flows.workplace import PARAMS, Workplace
from pspnet.config.params import load_params
from pspnet.errors import UserError
from pspnet.worktree import mend


@flow(name="retrain", persist_result=False)
def retrain(overrides: dict[str, Any] | None = None, data: dict[str, str] | None = None) -> State[Any]:
    """`overrides`: parameters of this run alone, such as {"finetune.learning_rate": 0.01}.

    `data`: the content of .dvc files, where not what lies in the checkout is to be trained on.
    """
    return attempt(lambda workplace, environment: _retrain(workplace, environment, data), overrides)


def _retrain(workplace: Workplace, environment: dict[str, str], data: dict[str, str] | None) -> State[Any]:
    load_params(workplace.folder / PARAMS)
    mend(workplace.folder)
    clear(workplace)
    dag = read_dag(workplace.folder)
    if in_place := all((workplace.folder / source.name).exists() for source in dag.sources):
        _examine(workplace, environment)
    for source in dag.sources:
        renew = as_task(source.name, bring_up_to_date, retries=5)
        done(renew(workplace, source, environment, data, dag.has_remote))
    if not in_place:
        _examine(workplace, environment)
    summary = _stages(workplace, environment, read_dag(workplace.folder))
    register = as_task("register", pspnet, retries=3)
    summary.registered = done(register(workplace, environment, "register", "--promote"))
    summary.publish()
    if dag.has_remote:
        done(as_task("push", push, retries=3)(workplace, environment))
    return Completed(message=summary.headline)


def _stages(workplace: Workplace, environment: dict[str, str], dag: Dag) -> Summary:
    """One after the other, as DVC does: two at once in one folder would stand in each other's way."""
    changed = changed_stages(workplace.folder)
    summary = Summary(workplace.folder)
    states: dict[str, State[Any]] = {}
    for stage in dag.stages:
        is_changed = stage.name in changed or any(summary.is_new(name) for name in stage.upstream)
        states[stage.name] = _task(stage, is_changed)(
            workplace, stage, environment, dag, wait_for=[states[name] for name in stage.upstream if name in states],
        )  # fmt: skip
        summary.add(done(states[stage.name]))
    return summary


def _task(stage: Stage, is_changed: bool) -> Callable[..., State[Any]]:
    def work(workplace: Workplace, stage: Stage, environment: dict[str, str], dag: Dag) -> Any:
        if not is_changed:
            return unchanged(stage)
        if pool := elsewhere(stage):
            return reproduce_elsewhere(workplace, stage, pool, dag.sources, environment)
        return reproduce_here(workplace, stage, dag, environment)

    return as_task(stage.name, work, stage.retries)


def _examine(workplace: Workplace, environment: dict[str, str]) -> None:
    """A person's mistakes are told before anything has been done."""
    ended = run(["pspnet", "doctor", "--quick"], workplace.folder, environment, tell=lambda line: None)
    if ended.status:
        raise UserError([], ended.output)
