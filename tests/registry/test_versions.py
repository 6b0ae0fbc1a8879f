from pathlib import Path

import pytest

from pspnet.registry.versions import BUNDLE, Versions
from pspnet.tracking.connection import connect

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's, of its own code


def test_of_two_versions_of_a_bundle_the_first_stays(state: Path) -> None:
    """Two hosts may add the same bundle at the same time."""
    client = connect(state)
    versions = Versions(client, state, "streets")
    first = versions.add("file:///nowhere/1", "", "digest", {})
    client.create_model_version("streets", "file:///nowhere/2", "", tags={BUNDLE: "digest"})
    found = versions.by_bundle("digest")
    assert found is not None
    assert found.number == first.number
    assert [version.number for version in versions.all()] == [first.number]
