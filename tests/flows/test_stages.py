"""Which ends of a task are tried again."""

from typing import Any

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from flows.ending import BUSY, FAILED, INTERRUPTED, KILLED, NETWORK, TIMED_OUT
from flows.stages import may_end_otherwise


def _nothing() -> None:
    """Never run."""


TASK: Task[..., Any] = Task(_nothing)
RUN = TaskRun(task_key="nothing", dynamic_key="0")


@pytest.mark.parametrize("name", [KILLED, BUSY, INTERRUPTED, NETWORK])
def test_trouble_that_passes_is_tried_again(name: str) -> None:
    assert may_end_otherwise(TASK, RUN, Failed(name=name))


@pytest.mark.parametrize("name", [FAILED, TIMED_OUT, "Crashed"])
def test_a_mistake_is_not_tried_again(name: str) -> None:
    assert not may_end_otherwise(TASK, RUN, Failed(name=name))
