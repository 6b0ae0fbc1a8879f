from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests import warm
from tests.sharing import shared_server
from tests.team.team import Plain, Team

PARAMS: dict[str, Any] = {
    "promotion__min_mean_iou": 0.0, "pretrain__method": {"kind": "none"}, "finetune__epochs": 3,
}  # fmt: skip
# Without the modules that set up logging.
PREFECT = ("prefect.artifacts", "prefect.cli.deploy", "prefect.deployments", "prefect.task_engine")


@pytest.fixture(scope="session")
def warm_prefect(shared: Path) -> Iterator[str]:
    """`warm_python` with Prefect also loaded. `pspnet` and `dvc` are next to it."""

    def start(folder: Path) -> None:
        warm.start(folder, *PREFECT)

    with shared_server(shared / "warm-prefect", start, warm.stop) as folder:
        yield str(folder / "python")


@pytest.fixture(scope="package")
def team(tmp_path_factory: pytest.TempPathFactory, warm_prefect: str) -> Iterator[Team]:
    team = Team(tmp_path_factory.mktemp("team"), warm_prefect, **PARAMS)
    try:
        team.start()
        yield team
    finally:
        team.stop()


@pytest.fixture
def undisturbed(team: Team) -> Iterator[None]:
    with team.undisturbed():
        yield


@pytest.fixture(scope="package")
def mlflow(team: Team) -> MlflowClient:
    return MlflowClient(team.mlflow.uri)


@pytest.fixture(scope="package")
def plain(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return Plain(team, tmp_path_factory.mktemp("plain"))
