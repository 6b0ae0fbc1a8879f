import io
from typing import Any

import pytest
from rich.console import Console

from flows import progress
from flows.progress import Progress, ProgressLine, artifact_key, parse_line
from pspnet.machine import terminal


def test_a_progress_line_is_parsed() -> None:
    line = "finetune: 1,200/4,800, 35/s, 103 s left, epoch 3/12, loss 0.412, val mIoU 0.61"
    assert parse_line("finetune", line) == ProgressLine(
        25.0, "epoch 3/12, loss 0.412, val mIoU 0.61, 35 images/s, 103 s left"
    )
    assert parse_line("prepare", "prepare: 7/28, checked") == ProgressLine(25.0, "checked")
    assert parse_line("prepare", "prepare: 0/0, ") == ProgressLine(0.0, "")


@pytest.mark.parametrize(
    "line",
    ["finetune: done in 3 s", "Running stage 'finetune':", "pretrain: 1/2, epoch 1/2", "x finetune: 1/2, y", ""],
)
def test_other_lines_are_ignored(line: str) -> None:
    assert parse_line("finetune", line) is None


def test_the_lines_that_a_stage_prints_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of the pipe agree on the format of the line."""
    printed = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=printed, width=500, soft_wrap=True))
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0)
    with terminal.progress("pretrain") as tick:
        tick(10, 4000, "epoch 1/4, loss 2.000")
        tick(1000, 4000, "epoch 2/4, loss 1.000")
    first, second = [parse_line("pretrain", line) for line in printed.getvalue().splitlines()]
    assert first == ProgressLine(0.25, "epoch 1/4, loss 2.000")
    assert second is not None
    assert second.percent == 25.0
    assert second.text.startswith("epoch 2/4, loss 1.000, ")
    assert second.text.endswith(" s left")


class Api:
    """Prefect's API, which is down now and then."""

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
    for line in ("fine-tune-b: 1/4, a", "noise", "fine-tune-b: 3/4, b"):
        shown.read(line)
    shown.finish()
    assert api.shown == [(25.0, "a"), (75.0, "b"), (100.0, "b")]


def test_a_stage_without_progress_lines_ends_at_100_percent_too(api: Api) -> None:
    shown = Progress("fine-tune@b")
    shown.read("Running stage")
    assert api.shown == []
    shown.finish()
    assert api.shown == [(100.0, "")]


def test_the_server_is_not_called_for_every_line(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BETWEEN_SECONDS", 60.0)
    shown = Progress("fine-tune-b")
    for number in range(1, 5):
        shown.read(f"fine-tune-b: {number}/4, n")
    assert len(api.shown) == 1


def test_a_server_that_is_down_does_not_fail_the_stage(api: Api) -> None:
    shown = Progress("fine-tune-b")
    api.away = True
    shown.read("fine-tune-b: 1/4, a")
    api.away = False
    shown.read("fine-tune-b: 2/4, b")
    api.away = True
    shown.finish()
    assert api.shown == [(50.0, "b")]


def test_keys_are_valid_for_prefect() -> None:
    assert artifact_key("progress", "train@Resnet_18") == "progress-train-resnet-18"
