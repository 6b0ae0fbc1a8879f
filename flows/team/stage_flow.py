"""The flow that runs one stage for a run in another pool. The other run pulls the results from the DVC remote."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.dag import read_dag
from flows.flow_attempt import attempt, result_of
from flows.registry import send_records
from flows.remote import push
from flows.tasks import StageResult, as_task
from flows.team.parts import reproduce_here
from flows.workplace import Workplace


@flow(name="stage", persist_result=False)
def stage(name: str, files: dict[str, str]) -> State[Any]:
    """Run the stage and push its results. `files`: params.yaml, dvc.lock and .dvc files of the waiting run."""

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        workplace.write(files)
        dag = read_dag(workplace.folder)
        wanted = dag.named(name)
        reproduce = as_task(name, reproduce_here, wanted.retries)
        result: StageResult = result_of(reproduce(workplace, wanted, dag, environment))
        result_of(as_task("push", push, retries=3)(workplace, environment))
        send = as_task("send records", send_records, retries=3)
        send(workplace, environment)  # if this fails, the stage does not fail
        return Completed(message=f"{result.how} in {result.seconds:.0f} s")

    return attempt(work)
