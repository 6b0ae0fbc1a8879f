"""One stage for a run that goes on elsewhere: what it makes goes to the DVC remote, from where that run fetches it."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.attempts import attempt, done
from flows.dag import read_dag
from flows.parts import reproduce_here
from flows.registry import send_records
from flows.remote import push
from flows.stages import Outcome, as_task
from flows.workplace import Workplace


@flow(name="stage", persist_result=False)
def stage(name: str, files: dict[str, str]) -> State[Any]:
    """`files`: the params.yaml, dvc.lock and .dvc files of the run that wants it."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        workplace.write(files)
        dag = read_dag(workplace.folder)
        wanted = dag.named(name)
        outcome: Outcome = done(as_task(name, reproduce_here, wanted.retries)(workplace, wanted, dag, environment))
        done(as_task("push", push, retries=3)(workplace, environment))
        as_task("send records", send_records, retries=3)(
            workplace, environment
        )  # without them the stage has ended well
        return Completed(message=f"{outcome.how} in {outcome.seconds:.0f} s")

    return attempt(work)
