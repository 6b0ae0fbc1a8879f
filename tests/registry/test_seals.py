"""Someone who can write to the artifact store cannot change a version without being noticed."""

import os
import shutil
from pathlib import Path

import pytest

from pspnet.errors import UserError
from pspnet.registry.model_registry import ModelRegistry, open_registry
from pspnet.registry.promotion import seal
from pspnet.registry.records import Kind, Move, ProposedMove, previous_champion
from pspnet.registry.seal import CONTENT, KEY, SIGNATURE, content_digest
from pspnet.serving.client import own_code_environment
from tests.parameters import demo_params
from tests.registry.moves import make_move
from tests.registry.packed import add_packed

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns about its own code
SECRET = "0123456789abcdef" * 4


@pytest.fixture
def registry(state: Path, sqlite: Path) -> ModelRegistry:
    state.mkdir()
    shutil.copyfile(sqlite / "mlflow.db", state / "mlflow.db")
    return open_registry(state, demo_params())


def no_download_is_left(registry: ModelRegistry) -> bool:
    return [path.suffix for path in (registry.state / "versions").iterdir()] == [".lock"]


@pytest.mark.parametrize("file", ["code/pspnet/__init__.py", "artifacts/bundle/model.safetensors", "MLmodel", "new.py"])
def test_files_changed_in_the_store_are_refused(registry: ModelRegistry, tmp_path: Path, file: str) -> None:
    version = add_packed(registry.versions, tmp_path / "made")
    with (tmp_path / "made" / file).open("a") as changed:
        changed.write("\n")
    with pytest.raises(UserError, match="version 1: has files that differ from when it was registered"):
        registry.folder(version)
    assert no_download_is_left(registry)


def test_a_file_missing_from_the_store_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    version = add_packed(registry.versions, tmp_path / "made")
    (tmp_path / "made/code/pspnet/__init__.py").unlink()
    with pytest.raises(UserError, match="version 1: has files that differ from when it was registered"):
        registry.folder(version)


def test_an_artifact_outside_the_version_is_not_read(registry: ModelRegistry, tmp_path: Path) -> None:
    version = add_packed(registry.versions, tmp_path / "made")
    model = tmp_path / "made/MLmodel"
    shutil.copytree(tmp_path / "made/artifacts/bundle", tmp_path / "elsewhere")
    model.write_text(model.read_text().replace("artifacts/bundle", "../../../../elsewhere"))
    registry.versions.set_tags(1, {CONTENT: content_digest(tmp_path / "made")})
    with pytest.raises(UserError, match="contains no bundle"):
        registry.folder(registry.versions.get("1"))
    assert version.content


def test_other_weights_are_refused_even_without_a_seal(registry: ModelRegistry, tmp_path: Path) -> None:
    add_packed(registry.versions, tmp_path / "made")
    registry.versions.set_tags(1, {CONTENT: ""})
    (tmp_path / "made/artifacts/bundle/model.safetensors").write_text("others")
    with pytest.raises(UserError, match="version 1: contains the bundle"):
        registry.folder(registry.versions.get("1"))
    assert no_download_is_left(registry)


def test_a_version_without_a_seal_causes_one_warning_and_can_be_sealed(
    registry: ModelRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_packed(registry.versions, tmp_path / "made")
    registry.versions.set_tags(1, {CONTENT: "", SIGNATURE: ""})
    unsealed = registry.versions.get("1")
    registry.folder(unsealed)
    assert "version 1 has no seal" in capsys.readouterr().err
    registry.folder(unsealed)
    assert capsys.readouterr().err == ""
    sealed = registry.versions.seal(unsealed)
    assert sealed.content == content_digest(tmp_path / "made")
    registry.folder(sealed)
    assert capsys.readouterr().err == ""


def test_changed_files_are_not_sealed(registry: ModelRegistry, tmp_path: Path) -> None:
    version = add_packed(registry.versions, tmp_path / "made")
    (tmp_path / "made/code/pspnet/__init__.py").write_text("import evil")
    with pytest.raises(UserError, match="version 1: has files that differ from when it was registered"):
        registry.versions.seal(version)


def test_with_a_key_only_signed_seals_count(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_packed(registry.versions, tmp_path / "unsigned", "1")
    monkeypatch.setenv(KEY, SECRET)
    signed = add_packed(registry.versions, tmp_path / "signed", "2")
    assert registry.folder(signed).is_dir()
    with pytest.raises(UserError, match=f"version 1: has a seal that was not signed with {KEY}"):
        registry.folder(registry.versions.get("1"))
    assert registry.folder(registry.versions.seal(registry.versions.get("1"))).is_dir()
    registry.versions.set_tags(2, {CONTENT: ""})
    with pytest.raises(UserError, match="version 2: has no seal"):
        registry.folder(registry.versions.get("2"))


def test_with_a_key_the_seal_of_another_version_is_refused(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who can write to MLflow copies the files and both tags of a signed version to another version."""
    monkeypatch.setenv(KEY, SECRET)
    add_packed(registry.versions, tmp_path / "first", "1")
    second = add_packed(registry.versions, tmp_path / "second", "2")
    for file in ("code/pspnet/__init__.py", "artifacts/bundle/model.safetensors"):
        shutil.copyfile(tmp_path / "second" / file, tmp_path / "first" / file)
    registry.versions.set_tags(1, {name: second.tags[name] for name in (CONTENT, SIGNATURE)})
    with pytest.raises(UserError, match="version 1"):
        registry.folder(registry.versions.get("1"))


def test_a_short_key_is_refused(registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add_packed(registry.versions, tmp_path / "made")
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(UserError, match=f"{KEY}: has 6 characters; expected at least 16"):
        registry.folder(version)


def promote(registry: ModelRegistry, number: int, kind: Kind = "promotion") -> Move:
    content = registry.versions.get(str(number)).content
    return make_move(registry.audit, ProposedMove(kind, number, "better", content=content))


def test_the_audit_keeps_the_digest_of_the_promoted_files(registry: ModelRegistry, tmp_path: Path) -> None:
    """Changing a version's tag along with its files does not help: the record of the move also has the digest."""
    add_packed(registry.versions, tmp_path / "made")
    assert promote(registry, 1).content == content_digest(tmp_path / "made")
    (tmp_path / "made/code/pspnet/__init__.py").write_text("import evil")
    registry.versions.set_tags(1, {CONTENT: content_digest(tmp_path / "made")})
    with pytest.raises(UserError, match=r"version 1: has the digest .* as in move 1 of the audit"):
        registry.folder(registry.versions.get("1"))


def test_moving_the_alias_away_and_back_does_not_make_the_audit_forget_the_files(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    add_packed(registry.versions, tmp_path / "first", "1")
    add_packed(registry.versions, tmp_path / "second", "2")
    promote(registry, 1)
    for number in (2, 1):
        registry.versions.set_alias("champion", number)
        registry.audit.settle()
    assert [move.kind for move in registry.audit.moves()] == ["promotion", "outside", "outside"]
    (tmp_path / "first/code/pspnet/__init__.py").write_text("import evil")
    registry.versions.set_tags(1, {CONTENT: content_digest(tmp_path / "first")})
    with pytest.raises(UserError, match="as in move 1 of the audit"):
        registry.folder(registry.versions.get("1"))


def test_sealing_the_champion_again_records_its_digest_in_the_audit(registry: ModelRegistry, tmp_path: Path) -> None:
    add_packed(registry.versions, tmp_path / "first", "1")
    add_packed(registry.versions, tmp_path / "second", "2")
    registry.versions.set_tags(2, {CONTENT: ""})
    promote(registry, 1)
    promote(registry, 2)
    seal(registry, "champion")
    *_, sealed = registry.audit.moves()
    assert (sealed.kind, sealed.from_version, sealed.to_version) == ("seal", 2, 2)
    assert sealed.content == content_digest(tmp_path / "second")
    assert registry.versions.alias("champion") == 2
    assert previous_champion(registry.audit.moves(), [1, 2]) == 1


@pytest.fixture
def records(registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the runs of four moves by number. The last two moves are signed."""
    for number in (1, 2, 3, 4):
        add_packed(registry.versions, tmp_path / f"{number}", f"{number}")
    promote(registry, 1)
    promote(registry, 2)
    monkeypatch.setenv(KEY, SECRET)
    promote(registry, 3)
    promote(registry, 4)
    home = registry.client.get_experiment_by_name(f"{registry.versions.model}.promotions")
    assert home is not None
    return {run.data.tags["number"]: run.info.run_id for run in registry.client.search_runs([home.experiment_id])}


@pytest.mark.parametrize("change", [
    {"to_version": "2"}, {"why": "worse"}, {"who": "eve"}, {"content": "0" * 64}, {"state": "abandoned"},
    {"signature": ""}, {"closing": ""}, {"signature": "é"},
])  # fmt: skip
def test_a_changed_signed_record_is_refused(
    registry: ModelRegistry, records: dict[str, str], change: dict[str, str]
) -> None:
    for key, value in change.items():
        registry.client.set_tag(records["4"], key, value)
    with pytest.raises(UserError, match=f"promotions, move 4: is not signed with {KEY}"):
        registry.audit.moves()
    with pytest.raises(UserError, match="move 4"):
        promote(registry, 2)


def test_unsigned_records_may_only_precede_signed_ones(
    registry: ModelRegistry, records: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [move.to_version for move in registry.audit.moves()] == [1, 2, 3, 4]
    monkeypatch.delenv(KEY)
    promote(registry, 2)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UserError, match=r"move 5: is not signed with .*\. Every process that promotes needs the key"):
        registry.audit.moves()
    registry.client.delete_run(next(iter(run.info.run_id for run in registry.audit.ledger._runs(5))))
    assert [move.to_version for move in registry.audit.moves()] == [1, 2, 3, 4]


def test_an_unsigned_claim_is_not_carried_out(registry: ModelRegistry, records: dict[str, str]) -> None:
    tags = {"number": "5", "kind": "rollback", "from_version": "4", "to_version": "1", "state": "pending"}
    registry.client.create_experiment(f"{registry.versions.model}.promotion.5", tags=tags)
    with pytest.raises(UserError, match=r"promotion\.5: is not signed with"):
        registry.audit.settle()
    assert registry.versions.alias("champion") == 4


def test_records_signed_with_a_different_key_are_refused(
    registry: ModelRegistry, records: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(registry, 3)
    monkeypatch.setenv(KEY, "another" + SECRET)
    promote(registry, 4)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UserError, match="move 6"):
        registry.audit.moves()


def test_a_versions_own_code_finds_no_credentials_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING",
                 "DATABASE_URL", "GITHUB_TOKEN", "SSH_AUTH_SOCK", KEY, "PYTHONPATH"):  # fmt: skip
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = own_code_environment()
    assert "secret" not in found.values()
    assert (found["OMP_NUM_THREADS"], found["PATH"]) == ("3", os.environ["PATH"])
