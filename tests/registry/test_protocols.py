"""What was measured is what is served: reports of other settings than a version's count for nothing."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pspnet.commands.gate import Data, judge
from pspnet.commands.register import Results, register
from pspnet.commands.workshop import open_workshop
from pspnet.config.params import Params
from pspnet.errors import UserError
from pspnet.report import load_report, write_report
from tests.parameters import demo_params
from tests.registry.registrar import CLASSES, make

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's, of its own code


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


def test_a_model_that_was_measured_in_another_way_is_not_registered(results: Results, state: Path) -> None:
    with pytest.raises(UserError) as refusal:
        register(open_workshop(state, mirrored()), results)
    assert "was measured in another way than params.yaml says" in str(refusal.value)
    assert "`dvc repro` evaluates it again" in str(refusal.value)


@pytest.mark.e2e
def test_the_gate_takes_no_report_of_other_settings_than_the_version_serves_with(
    results: Results, state: Path, tmp_path: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the one that `dvc repro` has just made, after predict.flip was switched on."""
    monkeypatch.setattr(sys, "executable", warm_python)
    shop = open_workshop(state, demo_params())
    version, _ = register(shop, results)
    registered = load_report(results.report)
    perfect = dataclasses.replace(registered, confusion=np.diag(registered.confusion.sum(axis=1)))
    same, other = tmp_path / "same", tmp_path / "other"
    write_report(perfect, [], [], {}, same)
    write_report(dataclasses.replace(perfect, protocol="mirrored too"), [], [], {}, other)
    judged = judge(shop, version, None, Data(tmp_path / "none", other), forced=False)
    assert judged.candidate.mean_iou == pytest.approx(registered.mean_iou)
    # It can be: of the same settings the newer one counts. Forced, so that it is another question.
    judged = judge(shop, version, None, Data(tmp_path / "none", same), forced=True)
    assert judged.candidate.mean_iou == 1
