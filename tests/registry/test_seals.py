"""Nobody who can write where MLflow keeps its files changes a version unnoticed."""

import os
import shutil
from pathlib import Path

import pytest

from pspnet.commands import models
from pspnet.commands.workshop import Workshop, open_workshop
from pspnet.errors import UserError
from pspnet.registry.audit import Kind, Move, Wish, previous_champion
from pspnet.registry.seal import CONTENT, KEY, SIGNATURE, content_digest
from pspnet.served import own_code_environment
from tests.parameters import demo_params
from tests.registry.packed import add_packed

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's, of its own code
SECRET = "0123456789abcdef" * 4


@pytest.fixture
def shop(state: Path, sqlite: Path) -> Workshop:
    state.mkdir()
    shutil.copyfile(sqlite / "mlflow.db", state / "mlflow.db")
    return open_workshop(state, demo_params())


def nothing_is_left(shop: Workshop) -> bool:
    return [path.suffix for path in (shop.state / "versions").iterdir()] == [".lock"]


@pytest.mark.parametrize("file", ["code/pspnet/__init__.py", "artifacts/bundle/model.safetensors", "MLmodel", "new.py"])
def test_files_that_were_changed_in_the_store_are_refused(shop: Workshop, tmp_path: Path, file: str) -> None:
    version = add_packed(shop.versions, tmp_path / "made")
    with (tmp_path / "made" / file).open("a") as changed:
        changed.write("\n")
    with pytest.raises(UserError, match="version 1: has other files than were registered"):
        shop.folder(version)
    assert nothing_is_left(shop)


def test_a_file_that_is_gone_from_the_store_is_refused(shop: Workshop, tmp_path: Path) -> None:
    version = add_packed(shop.versions, tmp_path / "made")
    (tmp_path / "made/code/pspnet/__init__.py").unlink()
    with pytest.raises(UserError, match="version 1: has other files than were registered"):
        shop.folder(version)


def test_an_artifact_outside_of_the_version_is_not_read(shop: Workshop, tmp_path: Path) -> None:
    version = add_packed(shop.versions, tmp_path / "made")
    model = tmp_path / "made/MLmodel"
    shutil.copytree(tmp_path / "made/artifacts/bundle", tmp_path / "elsewhere")
    model.write_text(model.read_text().replace("artifacts/bundle", "../../../../elsewhere"))
    shop.versions.set_tags(1, {CONTENT: content_digest(tmp_path / "made")})
    with pytest.raises(UserError, match="holds no bundle"):
        shop.folder(shop.versions.get("1"))
    assert version.content


def test_other_weights_are_refused_of_a_version_without_a_seal_too(shop: Workshop, tmp_path: Path) -> None:
    add_packed(shop.versions, tmp_path / "made")
    shop.versions.set_tags(1, {CONTENT: ""})
    (tmp_path / "made/artifacts/bundle/model.safetensors").write_text("others")
    with pytest.raises(UserError, match="version 1: holds the bundle"):
        shop.folder(shop.versions.get("1"))
    assert nothing_is_left(shop)


def test_a_version_without_a_seal_is_told_once_and_can_get_one(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_packed(shop.versions, tmp_path / "made")
    shop.versions.set_tags(1, {CONTENT: "", SIGNATURE: ""})
    unsealed = shop.versions.get("1")
    shop.folder(unsealed)
    assert "version 1 has no seal" in capsys.readouterr().err
    shop.folder(unsealed)
    assert capsys.readouterr().err == ""
    sealed = shop.versions.seal(unsealed)
    assert sealed.content == content_digest(tmp_path / "made")
    shop.folder(sealed)
    assert capsys.readouterr().err == ""


def test_files_that_were_changed_are_not_sealed(shop: Workshop, tmp_path: Path) -> None:
    version = add_packed(shop.versions, tmp_path / "made")
    (tmp_path / "made/code/pspnet/__init__.py").write_text("import evil")
    with pytest.raises(UserError, match="version 1: has other files than were registered"):
        shop.versions.seal(version)


def test_with_a_key_only_signed_seals_count(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_packed(shop.versions, tmp_path / "unsigned", "1")
    monkeypatch.setenv(KEY, SECRET)
    signed = add_packed(shop.versions, tmp_path / "signed", "2")
    assert shop.folder(signed).is_dir()
    with pytest.raises(UserError, match=f"version 1: has a seal that was not signed with {KEY}"):
        shop.folder(shop.versions.get("1"))
    assert shop.folder(shop.versions.seal(shop.versions.get("1"))).is_dir()
    shop.versions.set_tags(2, {CONTENT: ""})
    with pytest.raises(UserError, match="version 2: has no seal"):
        shop.folder(shop.versions.get("2"))


def test_a_seal_of_another_version_is_refused_where_there_is_a_key(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever can write to MLflow: the files and both tags of a version that was signed."""
    monkeypatch.setenv(KEY, SECRET)
    add_packed(shop.versions, tmp_path / "first", "1")
    second = add_packed(shop.versions, tmp_path / "second", "2")
    for file in ("code/pspnet/__init__.py", "artifacts/bundle/model.safetensors"):
        shutil.copyfile(tmp_path / "second" / file, tmp_path / "first" / file)
    shop.versions.set_tags(1, {name: second.tags[name] for name in (CONTENT, SIGNATURE)})
    with pytest.raises(UserError, match="version 1"):
        shop.folder(shop.versions.get("1"))


def test_a_key_that_can_be_guessed_is_refused(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add_packed(shop.versions, tmp_path / "made")
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(UserError, match=f"{KEY}: has 6 characters; expected at least 16"):
        shop.folder(version)


def promote(shop: Workshop, number: int, kind: Kind = "promotion") -> Move:
    content = shop.versions.get(str(number)).content
    return shop.audit.move(lambda _: Wish(kind, number, "better", content=content), lost=lambda text: None)


def test_the_audit_keeps_what_the_promoted_files_were(shop: Workshop, tmp_path: Path) -> None:
    """Whoever changes a version's tag beside its files meets the record."""
    add_packed(shop.versions, tmp_path / "made")
    assert promote(shop, 1).content == content_digest(tmp_path / "made")
    (tmp_path / "made/code/pspnet/__init__.py").write_text("import evil")
    shop.versions.set_tags(1, {CONTENT: content_digest(tmp_path / "made")})
    with pytest.raises(UserError, match=r"version 1: has the digest .* as in move 1 of the audit"):
        shop.folder(shop.versions.get("1"))


def test_an_alias_that_was_moved_away_and_back_does_not_make_the_audit_forget_the_files(
    shop: Workshop, tmp_path: Path
) -> None:
    add_packed(shop.versions, tmp_path / "first", "1")
    add_packed(shop.versions, tmp_path / "second", "2")
    promote(shop, 1)
    for number in (2, 1):
        shop.versions.set_alias("champion", number)
        shop.audit.settle()
    assert [move.kind for move in shop.audit.moves()] == ["promotion", "outside", "outside"]
    (tmp_path / "first/code/pspnet/__init__.py").write_text("import evil")
    shop.versions.set_tags(1, {CONTENT: content_digest(tmp_path / "first")})
    with pytest.raises(UserError, match="as in move 1 of the audit"):
        shop.folder(shop.versions.get("1"))


def test_a_champion_that_is_sealed_again_has_its_digest_in_the_audit(shop: Workshop, tmp_path: Path) -> None:
    add_packed(shop.versions, tmp_path / "first", "1")
    add_packed(shop.versions, tmp_path / "second", "2")
    shop.versions.set_tags(2, {CONTENT: ""})
    promote(shop, 1)
    promote(shop, 2)
    models.seal(shop, "champion")
    *_, sealed = shop.audit.moves()
    assert (sealed.kind, sealed.from_version, sealed.to_version) == ("seal", 2, 2)
    assert sealed.content == content_digest(tmp_path / "second")
    assert shop.versions.alias("champion") == 2
    assert previous_champion(shop.audit.moves(), [1, 2]) == 1


@pytest.fixture
def records(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of four moves, the last two signed: number -> run."""
    for number in (1, 2, 3, 4):
        add_packed(shop.versions, tmp_path / f"{number}", f"{number}")
    promote(shop, 1)
    promote(shop, 2)
    monkeypatch.setenv(KEY, SECRET)
    promote(shop, 3)
    promote(shop, 4)
    home = shop.client.get_experiment_by_name(f"{shop.versions.model}.promotions")
    assert home is not None
    return {run.data.tags["number"]: run.info.run_id for run in shop.client.search_runs([home.experiment_id])}


@pytest.mark.parametrize("change", [
    {"to_version": "2"}, {"why": "worse"}, {"who": "eve"}, {"content": "0" * 64}, {"state": "abandoned"},
    {"signature": ""}, {"closing": ""}, {"signature": "é"},
])  # fmt: skip
def test_a_signed_record_that_was_changed_is_refused(
    shop: Workshop, records: dict[str, str], change: dict[str, str]
) -> None:
    for key, value in change.items():
        shop.client.set_tag(records["4"], key, value)
    with pytest.raises(UserError, match=f"promotions, move 4: is not signed with {KEY}"):
        shop.audit.moves()
    with pytest.raises(UserError, match="move 4"):
        promote(shop, 2)


def test_records_of_a_time_without_a_key_may_stand_before_signed_ones_only(
    shop: Workshop, records: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [move.to_version for move in shop.audit.moves()] == [1, 2, 3, 4]
    monkeypatch.delenv(KEY)
    promote(shop, 2)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UserError, match=r"move 5: is not signed with .*\. Every process that promotes needs the key"):
        shop.audit.moves()
    shop.client.delete_run(next(iter(run.info.run_id for run in shop.audit._runs(5))))
    assert [move.to_version for move in shop.audit.moves()] == [1, 2, 3, 4]


def test_an_unsigned_claim_is_not_carried_out(shop: Workshop, records: dict[str, str]) -> None:
    tags = {"number": "5", "kind": "rollback", "from_version": "4", "to_version": "1", "state": "pending"}
    shop.client.create_experiment(f"{shop.versions.model}.promotion.5", tags=tags)
    with pytest.raises(UserError, match=r"promotion\.5: is not signed with"):
        shop.audit.settle()
    assert shop.versions.alias("champion") == 4


def test_records_signed_with_another_key_are_refused(
    shop: Workshop, records: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(shop, 3)
    monkeypatch.setenv(KEY, "another" + SECRET)
    promote(shop, 4)
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(UserError, match="move 6"):
        shop.audit.moves()


def test_a_versions_own_code_finds_no_credentials_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING",
                 "DATABASE_URL", "GITHUB_TOKEN", "SSH_AUTH_SOCK", KEY, "PYTHONPATH"):  # fmt: skip
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = own_code_environment()
    assert "secret" not in found.values()
    assert (found["OMP_NUM_THREADS"], found["PATH"]) == ("3", os.environ["PATH"])
