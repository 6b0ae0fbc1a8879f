import os
import subprocess
import sys
from datetime import timedelta

import pytest
from prefect.events.schemas.automations import EventTrigger

from flows.team.lost_runs import automations
from pspnet.errors import UserError
from tests.flows.server import PrefectServer

INSTALL = """
from prefect import get_client
from flows.team.lost_runs import install
with get_client(sync_client=True) as client:
    install(client, ["prefect.deployment.1"], afresh=False)
    print(sorted(str(one.id) for one in client.read_automations()))
"""


def waits() -> list[timedelta]:
    found = []
    for automation in automations(["prefect.deployment.1"]):
        assert isinstance(automation.trigger, EventTrigger)
        found.append(automation.trigger.within)
    return found


def test_the_default_waits_are_90_seconds_10_minutes_and_20_seconds() -> None:
    assert waits() == [timedelta(seconds=90), timedelta(minutes=10), timedelta(seconds=20)]


def test_a_team_can_set_longer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_LOST_SECONDS", "300")
    monkeypatch.setenv("PSPNET_RESUME_SECONDS", "60")
    lost, _, crashed = automations(["prefect.deployment.1"])
    assert waits() == [timedelta(seconds=300), timedelta(minutes=10), timedelta(seconds=60)]
    assert lost.actions[0].model_dump()["message"] == "No heartbeat for 300 s."
    assert crashed.trigger.model_dump()["match_related"]["prefect.resource.id"] == ["prefect.deployment.1"]


@pytest.mark.parametrize(
    ("name", "value", "more_than"),
    [("PSPNET_LOST_SECONDS", "30", 30), ("PSPNET_LOST_SECONDS", "a minute", 30), ("PSPNET_RESUME_SECONDS", "0", 0)],
)
def test_an_invalid_wait_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, more_than: int) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=f"{name}: is '{value}'; expected a whole number of seconds, more than {more_than}"
    ):
        automations([])


@pytest.mark.e2e
def test_a_second_deploy_keeps_unchanged_automations(prefect: PrefectServer) -> None:
    def installed(hash_seed: str) -> str:
        """Install the automations in a process that iterates over sets in a different order. Returns the automations'
        ids.
        """
        environment = os.environ | prefect.environment | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", INSTALL]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=200).stdout

    first = installed("1")
    assert first.count("'") == 6
    assert installed("2") == first
