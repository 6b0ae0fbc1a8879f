"""The commands as processes, on eight versions, each better than the one before, and a ninth with different classes."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pspnet.registry.seal import CONTENT, content_digest
from pspnet.registry.versions import Versions
from pspnet.tracking.connection import connect, experiment
from tests.command import PSPNET
from tests.files import linked, made_once
from tests.parameters import ROOT, changed

RULES = {"promotion__min_mean_iou": 0.0, "promotion__min_gain": 0.0, "promotion__max_class_loss": 1.0}


class Team:
    def __init__(self, python: str, database: str, folder: Path) -> None:
        self.python, self.database, self.folder = python, database, folder
        self.params(**RULES, registry__model="team")

    def params(self, **changes: Any) -> None:
        source = self.folder / "params.yaml"
        content = yaml.safe_load((source if source.exists() else ROOT / "params.yaml").read_text())
        source.write_text(yaml.safe_dump(changed(content, changes)))

    def environment(self, host: str) -> dict[str, str]:
        own = {"MLFLOW_TRACKING_URI": self.database, "PSPNET_STATE": str(self.folder / host), "COLUMNS": "300"}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1"}

    def start(self, host: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, PSPNET, *arguments], cwd=self.folder, env=self.environment(host), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(self, *arguments: str, status: int = 0) -> str:
        with self.start("here", *arguments) as process:
            out, err = process.communicate(timeout=200)
        assert process.returncode == status, out + err
        return out + err

    def champions(self) -> list[int]:
        moves = json.loads(self.call("models", "history", "--json"))
        assert [move["number"] for move in moves] == list(range(1, len(moves) + 1))
        assert [move["from_version"] for move in moves] == [0, *(move["to_version"] for move in moves)][:-1]
        assert {move["state"] for move in moves} <= {"done"}
        return [move["to_version"] for move in moves]


@pytest.fixture(scope="session")
def registered(shared: Path, warm_python: str) -> Path:
    """A registry with the registrar's nine versions."""

    def register(folder: Path) -> None:
        team = Team(warm_python, f"sqlite:///{folder}/mlflow.db", folder)
        subprocess.run(
            [warm_python, "-m", "tests.registry.registrar", folder / "here", folder], check=True, timeout=200,
            env=team.environment("here") | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    return made_once(shared / "registry/registered", register)


@pytest.fixture
def team(database: str, registered: Path, warm_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    """The nine versions, in a database and folders that only this test uses."""
    team = Team(warm_python, database, tmp_path)
    shutil.copytree(registered / "mlartifacts", tmp_path / "mlartifacts", copy_function=linked)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered}/mlflow.db")
    originals = Versions(connect(registered), registered, "team").all()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client = connect(tmp_path / "here")
    versions, home = Versions(client, tmp_path, "team"), experiment(client, tmp_path, "team")
    for version in originals:
        source = version.source.replace(str(registered), str(tmp_path))
        run = client.create_run(home).info.run_id
        versions.add(source, run, version.bundle, version.content, {**version.tags, "pipeline": run})
    return team


@pytest.mark.kills
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_eight_hosts_promote_eight_versions_at_once(team: Team) -> None:
    """Each version is compared with the current champion; a version that is no better by then is rejected."""
    hosts = {number: team.start(f"host{number}", "promote", str(number)) for number in range(1, 9)}
    outputs = {number: "".join(host.communicate(timeout=300)) for number, host in hosts.items()}
    champions = team.champions()
    assert champions == sorted(set(champions)), "a better version was replaced by a worse one"
    assert champions[-1] == 8
    for number, host in hosts.items():
        won = number in champions
        assert host.returncode == (0 if won else 1), outputs[number]
        assert ("is now champion" in outputs[number]) is won
        assert won or "not passed  gain: gain -" in outputs[number]
    aliases = {item["version"]: item["aliases"] for item in json.loads(team.call("models", "--json"))}
    assert [number for number, names in aliases.items() if "champion" in names] == [8]


@pytest.mark.e2e
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_version_with_different_classes_is_held_until_a_person_forces_it(team: Team) -> None:
    team.call("promote", "1")
    output = team.call("promote", "9", status=1)
    assert "version 9 is held" in output
    assert "new bus; gone car" in output
    assert "is now champion" in team.call("promote", "9", "--force", "--why", "buses matter more")
    assert team.champions()[-1] == 9
    output = team.call("rollback")
    assert "replaces 9 as champion" in output


@pytest.mark.e2e
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_version_that_predicts_otherwise_than_its_bundle_is_refused(team: Team) -> None:
    """The version's process would return different masks, because of packages, hardware or a bug in our code."""
    bundles = {item["version"]: item["bundle"][:16] for item in json.loads(team.call("models", "--json"))}
    store = Path(team.database.removeprefix("sqlite:///")).parent
    version, other = (next(store.rglob(f"versions/{bundles[number]}-*")) for number in (2, 3))
    for mask in version.glob("artifacts/expected/*.png"):
        mask.unlink()  # the mask is a link to a file that other tests use
        shutil.copyfile(other / mask.relative_to(version), mask)
    versions = Versions(connect(team.folder / "here"), team.folder, "team")
    versions.set_tags(2, {CONTENT: content_digest(version)})
    output = team.call("promote", "2", "--force", "--why", "try", status=1)
    assert "not passed  loads and predicts: the registered version does not predict what the bundle predicts" in output
    assert "of the pixels in image 1 differ" in output
    assert "version 2 is not promoted" in output
