from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.team.team import Plain, Team

PARAMS: dict[str, Any] = {"promotion__min_mean_iou": 0.0, "pretrain__method": "none", "finetune__epochs": 3}


@pytest.fixture(scope="package")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    team = Team(tmp_path_factory.mktemp("team"), **PARAMS)
    try:
        team.start()
        yield team
    finally:
        team.stop()


@pytest.fixture(scope="package")
def mlflow(team: Team) -> MlflowClient:
    return MlflowClient(team.mlflow.uri)


@pytest.fixture(scope="package")
def plain(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return Plain(team, tmp_path_factory.mktemp("plain"))
