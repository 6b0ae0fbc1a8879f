from typing import Any

import pytest

from flows import progress
from flows.progress import Progress, artifact_key, pace
from pspnet.machine.events import Event


def told(done: int, total: int, note: str = "", seconds: float = 0.0, title: str = "fine-tune-b") -> Event:
    facts = {"title": title, "done": done, "total": total, "note": note}
    return {"kind": "progress", "time": 1000 * seconds, **facts}


def test_the_pace_of_a_resumed_run_is_measured_from_its_first_event() -> None:
    first = told(1000, 4800)
    assert pace(first, told(1350, 4800, seconds=10)) == "35 images/s, 99 s left"
    assert pace(first, first) == ""
    assert pace(first, told(1000, 4800, seconds=10)) == ""


class Api:
    """Prefect's API, which is down from time to time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = False
        self.shown: list[tuple[float, str]] = []
        monkeypatch.setattr(progress, "create_progress_artifact", self.create)
        monkeypatch.setattr(progress, "update_progress_artifact", self.update)

    def create(self, percent: float, name: str, description: str) -> str:
        if self.away:
            raise ConnectionError("All connection attempts failed")
        assert name == "progress-fine-tune-b"
        self.shown.append((percent, description))
        return "the artifact"

    def update(self, artifact: str, progress: float, description: str) -> Any:
        assert artifact == "the artifact"
        self.create(progress, "progress-fine-tune-b", description)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setattr(progress, "BETWEEN_SECONDS", 0.0)
    return Api(monkeypatch)


def test_progress_moves_and_ends_at_100_percent(api: Api) -> None:
    shown = Progress("fine-tune-b")
    for event in (told(1, 4, "a"), told(9, 9, title="prepare"), told(3, 4, "b", seconds=2)):
        shown.show(event)
    shown.finish()
    text = "b, 1 images/s, 1 s left"
    assert api.shown == [(25.0, "a"), (75.0, text), (100.0, text)]


def test_a_stage_without_progress_ends_at_100_percent_too(api: Api) -> None:
    Progress("fine-tune@b").finish()
    assert api.shown == [(100.0, "")]


def test_a_stage_with_nothing_to_do_is_shown(api: Api) -> None:
    Progress("fine-tune-b").show(told(0, 0))
    assert api.shown == [(0.0, "")]


def test_the_server_is_not_called_for_every_event(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BETWEEN_SECONDS", 60.0)
    shown = Progress("fine-tune-b")
    for number in range(1, 5):
        shown.show(told(number, 4))
    assert len(api.shown) == 1


def test_a_server_that_is_down_does_not_fail_the_stage(api: Api) -> None:
    shown = Progress("fine-tune-b")
    api.away = True
    shown.show(told(1, 4, "a"))
    api.away = False
    shown.show(told(2, 4, "b"))
    api.away = True
    shown.finish()
    assert api.shown == [(50.0, "b")]


def test_keys_are_valid_for_prefect() -> None:
    assert artifact_key("progress", "train@Resnet_18") == "progress-train-resnet-18"
