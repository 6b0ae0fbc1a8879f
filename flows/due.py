"""Scheduled runs that were missed: after a night without power one is enough."""

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


def superseded() -> str | None:
    """Whether a later run of the same schedule is due as well: that one runs, this one and those between need not."""
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
        missed: list[FlowRun] = [one for one in due if one.auto_scheduled and one.id != ours.id]
        if not missed:
            return None
        for one in missed[1:]:
            client.delete_flow_run(one.id)
    get_run_logger().info("%d scheduled runs were missed; the last of them runs.", len(missed))
    return f"Not run: {missed[0].name} is due as well."
