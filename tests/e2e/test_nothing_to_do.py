"""`pspnet retrain` starts no flow if nothing has changed, but starts one if only the registry has work to do."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.e2e.pipeline import in_prefect, run

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("warm"), pytest.mark.timeout(600)]
MODEL = "pspnet-demo"
NOTHING = f"Nothing has changed.\n{MODEL}: version 1 is already the champion\n"


def flow_runs(folder: Path) -> int:
    [(count,)] = in_prefect(folder, "select count(*) from flow_run")
    return int(count)


def test_no_flow_starts_if_nothing_has_changed(retrained: Path) -> None:
    before = flow_runs(retrained)
    assert run(retrained, "pspnet", "retrain") == NOTHING
    assert flow_runs(retrained) == before

    MlflowClient(f"sqlite:///{retrained}/.pspnet/mlflow.db").delete_registered_model_alias(MODEL, "champion")
    said = run(retrained, "pspnet", "retrain")
    assert "Nothing has changed." not in said
    assert "Running stage" not in said
    assert flow_runs(retrained) == before + 1
