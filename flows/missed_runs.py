"""Skips scheduled runs that were missed. After a night without power, for example, one run is enough."""

from datetime import UTC, datetime

from prefect import get_client, get_run_logger
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run


def newer_due_run() -> str | None:
    """If a newer run of the same schedule is due, delete the runs in between and return why this run is skipped."""
    if flow_run.id is None:
        return None
    with get_client(sync_client=True) as client:
        ours = client.read_flow_run(flow_run.id)
        if ours.deployment_id is None or not ours.auto_scheduled:
            return None
        due = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[ours.deployment_id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                    {"after_": ours.expected_start_time, "before_": datetime.now(UTC)}
                ),
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
        missed: list[FlowRun] = [run for run in due if run.auto_scheduled and run.id != ours.id]
        if not missed:
            return None
        for run in missed[1:]:
            client.delete_flow_run(run.id)
    get_run_logger().info("%d scheduled runs were missed; only the newest will run.", len(missed))
    return f"Skipped: {missed[0].name} is also due."
