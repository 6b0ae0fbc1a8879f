"""`benchmarks/gpu.py` at its toy size: every part runs, and a failing part does not affect the others."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.flows.processes import left
from tests.parameters import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]


def test_every_part_is_measured_even_if_one_fails(tmp_path: Path, warm_python: str) -> None:
    options = ["--toy", "--out", "out", "--data", "absent"]
    command = [warm_python, str(ROOT / "benchmarks/gpu.py"), *options]
    environment = {**os.environ, "PSPNET_LOADER_WORKERS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert left(tmp_path) == []
    parts = json.loads((tmp_path / "out/gpu.json").read_text())["parts"]
    assert "absent: is missing" in parts.pop("learning")["error"]
    assert list(parts) == ["matrix", "eager", "compiled", "loader", "logits", "resume", "prediction"]
    assert [part["error"] for part in parts.values() if "error" in part] == []
    assert all(parts[name]["images_per_second"] > 0 for name in ("eager", "compiled", "loader", "prediction"))
    assert 0 < parts["logits"]["relative_error"] < 0.1
    assert parts["resume"]["equal"]
    table = (tmp_path / "out/gpu.md").read_text()
    assert table in done.stdout
    assert "killed and resumed: the same bytes" in table
