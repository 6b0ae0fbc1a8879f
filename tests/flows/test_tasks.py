"""Which failures of a task are retried."""

from typing import Any

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from flows.failure import BUSY, FAILED, INTERRUPTED, KILLED, NETWORK, TIMED_OUT
from flows.tasks import is_temporary


def _nothing() -> None:
    """This function is never run."""


TASK: Task[..., Any] = Task(_nothing)
RUN = TaskRun(task_key="nothing", dynamic_key="0")


@pytest.mark.parametrize("name", [KILLED, BUSY, INTERRUPTED, NETWORK])
def test_temporary_failures_are_retried(name: str) -> None:
    assert is_temporary(TASK, RUN, Failed(name=name))


@pytest.mark.parametrize("name", [FAILED, TIMED_OUT, "Crashed"])
def test_permanent_failures_are_not_retried(name: str) -> None:
    assert not is_temporary(TASK, RUN, Failed(name=name))
