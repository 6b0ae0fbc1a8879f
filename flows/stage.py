"""One stage for a run that goes on elsewhere: what it makes goes to the DVC remote, from where that run fetches it."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.attempts import attempt, done
from flows.dag import read_dag
from flows.registry import send_records
from flows.remote import push
from flows.stages import Outcome, as_task, reproduce
from flows.workplace import Workplace
from pspnet.errors import Problem, UserError


@flow(name="stage", persist_result=False)
def stage(name: str, files: dict[str, str]) -> State[Any]:
    """`files`: the params.yaml, dvc.lock and .dvc files of the run that wants it."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        workplace.write(files)
        stages = {one.name: one for one in read_dag(workplace.folder).stages}
        if name not in stages:
            raise UserError(Problem("stage", f"there is no '{name}'", f"one of {', '.join(stages)}"))
        run_it = as_task(name, reproduce, stages[name].retries)
        outcome: Outcome = done(run_it(workplace, stages[name], environment, True))
        done(as_task("push", push, retries=3)(workplace, environment))
        as_task("send records", send_records, retries=3)(
            workplace, environment
        )  # without them the stage has ended well
        return Completed(message=f"{outcome.how} in {outcome.seconds:.0f} s")

    return attempt(work)
