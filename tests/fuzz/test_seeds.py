"""What a fuzz has found is handled well."""

from pathlib import Path

import pytest

from tests.fuzz import HERE, target

SEEDS = [(path.parent.name, path) for path in sorted(HERE.glob("seeds/*/*"))]


@pytest.mark.filterwarnings("ignore")  # MLflow's and Pillow's
@pytest.mark.parametrize(("name", "seed"), SEEDS, ids=[f"{name}-{path.name}" for name, path in SEEDS])
def test_what_was_handled_badly_once_is_handled_well(name: str, seed: Path, tmp_path: Path) -> None:
    target(name).one(seed.read_bytes(), tmp_path)
