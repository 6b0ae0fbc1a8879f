from pathlib import Path

import pytest

from pspnet.errors import UserError
from pspnet.registry.versions import BUNDLE, Versions, has_folder
from pspnet.tracking.connection import connect
from tests.registry.packed import add_packed

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns about its own code


def test_the_first_of_two_versions_of_a_bundle_is_kept(state: Path) -> None:
    """Two hosts may add the same bundle at the same time."""
    client = connect(state)
    versions = Versions(client, state, "streets")
    first = versions.add("file:///nowhere/1", "", "digest", "", {})
    client.create_model_version("streets", "file:///nowhere/2", "", tags={BUNDLE: "digest"})
    found = versions.by_bundle("digest")
    assert found is not None
    assert found.number == first.number
    assert [version.number for version in versions.all()] == [first.number]


def test_a_downloaded_version_is_recognized_without_mlflow(state: Path, tmp_path: Path) -> None:
    client = connect(state)
    versions = Versions(client, state, "streets")
    version = add_packed(versions, tmp_path / "made")
    assert not has_folder(state, version.bundle)
    versions.folder(version)
    assert has_folder(state, version.bundle)
    assert not has_folder(state, "2" * 64)


def test_without_a_champion_the_message_says_which_command_makes_one(state: Path) -> None:
    versions = Versions(connect(state), state, "streets")

    def message() -> str:
        with pytest.raises(UserError) as error:
            versions.get("champion")
        return str(error.value)

    assert message() == "streets: has no versions yet. `make retrain` registers what it trains."
    for number in (1, 2):
        versions.add(f"file:///nowhere/{number}", "", f"digest {number}", "", {})
    assert message() == "streets: has no champion yet. Run `pspnet promote 2`, or give the number of a version: 1, 2."
    versions.set_tags(1, {"approval": "waiting"})
    assert message() == (
        "streets: has no champion yet; version 1 passed the gate and is waiting for approval. "
        "Run `pspnet promote 1 --approve`, or give the number of a version: 1, 2."
    )
