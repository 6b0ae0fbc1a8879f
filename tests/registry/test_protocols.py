"""A version serves with the settings it was evaluated with, so reports made with other settings do not count."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pspnet.config.params import Params
from pspnet.errors import UserError
from pspnet.evaluation.report import load_report, write_report
from pspnet.registry.evidence import LocalData, decide_on
from pspnet.registry.model_registry import open_registry
from pspnet.registry.registration import Results, register
from tests.parameters import demo_params
from tests.registry.registrar import CLASSES, make

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns about its own code


@pytest.fixture
def results(tmp_path: Path) -> Results:
    make(tmp_path / "version", 1, CLASSES, demo_params().predict)
    return Results(tmp_path / "version/bundle", tmp_path / "version/report", tmp_path / "none", tmp_path / "none")


@pytest.fixture
def state(state: Path, sqlite: Path) -> Path:
    state.mkdir()
    shutil.copyfile(sqlite / "mlflow.db", state / "mlflow.db")
    return state


def mirrored() -> Params:
    return demo_params(predict__flip=True)


def test_a_model_measured_with_different_settings_is_not_registered(results: Results, state: Path) -> None:
    with pytest.raises(UserError) as refusal:
        register(open_registry(state, mirrored()), results)
    assert "comes from an evaluation with settings other than those in params.yaml" in str(refusal.value)
    assert "`dvc repro` evaluates it again" in str(refusal.value)


@pytest.mark.e2e
def test_the_gate_ignores_a_report_made_with_other_settings(
    results: Results, state: Path, tmp_path: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc repro` creates such a report after predict.flip has been switched on."""
    monkeypatch.setattr(sys, "executable", warm_python)
    registry = open_registry(state, demo_params())
    version, _ = register(registry, results)
    registered = load_report(results.report)
    perfect = dataclasses.replace(registered, confusion=np.diag(registered.confusion.sum(axis=1)))
    same, other = tmp_path / "same", tmp_path / "other"
    write_report(perfect, [], [], {}, same)
    write_report(dataclasses.replace(perfect, protocol="mirrored too"), [], [], {}, other)
    decision = decide_on(registry, version, None, LocalData(tmp_path / "none", other), forced=False)
    assert decision.candidate.mean_iou == pytest.approx(registered.mean_iou)
    # With the same settings, the newer report counts. The promotion is forced here, so that the gate decides again.
    decision = decide_on(registry, version, None, LocalData(tmp_path / "none", same), forced=True)
    assert decision.candidate.mean_iou == 1
