"""Prefect automations, with which the server notices runs whose process has died and reschedules these runs."""

import os
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from pspnet.errors import Problem, UserError

HEARTBEAT_SECONDS = 30  # as often as Prefect allows
LOST_SECONDS = 3 * HEARTBEAT_SECONDS
RESUME_SECONDS = 20  # a worker that gets a run again while still handling its crash stops with a RuntimeError
BEGINS_SECONDS = 600  # maximum time for a run to start; it fetches a commit first
ENDINGS = ("Completed", "Failed", "Cancelled", "Crashed")
NOT_PENDING = ("Running", "Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Cancelling", *ENDINGS)


def install(client: SyncPrefectClient, deployments: list[str], afresh: bool) -> None:
    """Create or update the automations.

    `afresh`: also replace automations that are unchanged. The server then forgets the heartbeats it is waiting for,
    which is right if all processes that sent heartbeats are gone.
    """
    for wanted in automations(deployments):
        known = client.read_automations_by_name(wanted.name)
        if not afresh and len(known) == 1 and _content(known[0]) == _content(wanted):
            continue
        for old in known:
            client.delete_automation(old.id)
        client.create_automation(wanted)


def _content(automation: AutomationCore) -> dict[str, Any]:
    """The content to compare. Not as JSON, because sets would become lists whose order differs between processes."""
    return automation.model_dump(include={"name", "description", "enabled", "trigger", "actions"})


def automations(deployments: list[str]) -> list[AutomationCore]:
    """The automations for these deployments. They do not affect other runs on the server."""
    lost_seconds = _seconds("PSPNET_LOST_SECONDS", LOST_SECONDS, HEARTBEAT_SECONDS)
    resume_seconds = _seconds("PSPNET_RESUME_SECONDS", RESUME_SECONDS, 0)
    runs = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    ours = ResourceSpecification({"prefect.resource.role": "deployment", "prefect.resource.id": deployments})
    about: dict[str, Any] = {"match": runs, "match_related": ours, "for_each": {"prefect.resource.id"}, "threshold": 1}
    heartbeat = "prefect.flow-run.heartbeat"
    lost = EventTrigger(
        posture=Posture.Proactive,
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{ending}" for ending in ENDINGS)},
        within=timedelta(seconds=lost_seconds),
        **about,
    )
    stuck = EventTrigger(
        posture=Posture.Proactive,
        after={"prefect.flow-run.Pending"},
        expect={f"prefect.flow-run.{state}" for state in NOT_PENDING},
        within=timedelta(seconds=BEGINS_SECONDS),
        **about,
    )
    crashed = EventTrigger(
        posture=Posture.Proactive,
        after={"prefect.flow-run.Crashed"},
        expect={f"prefect.flow-run.{state}" for state in ("Pending", *NOT_PENDING) if state != "Crashed"},
        within=timedelta(seconds=resume_seconds),
        **about,
    )
    return [
        AutomationCore(
            name="pspnet: a run without a heartbeat has crashed",
            description="The run's machine or process is gone. Without this automation, it would stay Running forever.",
            trigger=lost,
            actions=[_change(StateType.CRASHED, f"No heartbeat for {lost_seconds} s.")],
        ),
        AutomationCore(
            name="pspnet: a run that does not begin has crashed",
            description="The run's machine died before the first heartbeat.",
            trigger=stuck,
            actions=[_change(StateType.CRASHED, f"It did not start within {BEGINS_SECONDS} s.")],
        ),
        AutomationCore(
            name="pspnet: a crashed run is scheduled again",
            description="The same run resumes from its last checkpoint. It fails after too many crashes.",
            trigger=crashed,
            actions=[_change(StateType.SCHEDULED, "It crashed.", name="AwaitingRetry", force=True)],
        ),
    ]


def _change(state: StateType, message: str, name: str | None = None, force: bool = False) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=name, message=message, force=force)


def _seconds(name: str, default: int, more_than: int) -> int:
    setting = os.environ.get(name, str(default))
    if not setting.isdecimal() or int(setting) <= more_than:
        expected = f"a whole number of seconds, more than {more_than}"
        raise UserError(Problem(name, f"is '{setting}'", expected))
    return int(setting)
