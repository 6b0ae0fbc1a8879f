"""The flow in a worktree of a checkout, as a worker runs it."""

import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pspnet.config.params import load_params
from pspnet.registry.model_registry import open_registry
from pspnet.registry.registration import Results, register
from tests.e2e.pipeline import checkout, environment, run
from tests.flows.processes import processes_of
from tests.flows.server import PrefectServer
from tests.raw.rawdata import encoded, noise, write
from tests.registry.registrar import make
from tests.waiting import wait_until

# Loading packages to register a version may cause warnings.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]

IMAGES, OTHERS = 60, 23
CLASSES = ("sky", "road", "car")

FLOW = """
import json, sys
from pathlib import Path
from pspnet.machine.offline import go_offline, configure_prefect
go_offline()
configure_prefect(Path(sys.argv[1]))
from flows import tasks
from flows.predict import predict
tasks.RETRY_SECONDS = [0.1]
for model in ("champion", "9"):
    state = predict("photos", "predictions", model, return_state=True)
    print(json.dumps([str(state.state_details.flow_run_id), state.name, state.message]), flush=True)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a champion and photos, and a worktree of it."""
    folder = checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    made, params = Path(".pspnet/made"), load_params(Path("params.yaml"))
    make(made, 1, CLASSES, params.predict)
    registry = open_registry(Path(".pspnet"), params)
    register(registry, Results(made / "bundle", made / "report", made / "nothing", made / "nothing"))
    registry.versions.set_alias("champion", 1)
    for number in range(IMAGES):
        write(folder / f"photos/{number:02}.png", encoded(noise(80, 100, seed=number)))
    for number in range(OTHERS):
        write(folder / f"photos/words/{number:02}.txt", "These are words.\n")
    run(folder, "git", "worktree", "add", "--quiet", "--detach", str(worktree(folder)), "HEAD")
    return folder


def worktree(place: Path) -> Path:
    """Create the worktree that a worker would create for the run."""
    return place / ".pspnet/runs/the-run"


def asked(prefect: PrefectServer, query: str, runs: list[str]) -> list[Any]:
    with closing(sqlite3.connect(prefect.database)) as database:
        return database.execute(query.format(f"flow_run_id in ({', '.join('?' * len(runs))})"), runs).fetchall()


def kill_in_the_midst(place: Path, flow: subprocess.Popen[str]) -> dict[Path, int]:
    """Kill the version's own process while it predicts. Returns the time of each mask written so far."""
    masks = place / "predictions/masks"
    wait_until(lambda: len(list(masks.glob("*.png"))) >= 5 or flow.poll() is not None)
    assert flow.poll() is None
    versions = str(place / ".pspnet/versions")
    [command] = [one for one in processes_of(place) if one.environ().get("PYTHONPATH", "").startswith(versions)]
    command.send_signal(signal.SIGKILL)
    command.wait(10)
    written = sorted(masks.glob("*.png"))
    assert len(written) < IMAGES
    return {path: path.stat().st_mtime_ns for path in written[:-1]}  # the last file may be incomplete


def test_a_killed_prediction_is_retried_and_a_mistake_is_reported(
    place: Path, prefect: PrefectServer, warm_python: str
) -> None:
    log = place.parent / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [warm_python, "-c", FLOW, str(place / ".pspnet")], cwd=worktree(place), text=True,
            env=environment(worktree(place)) | prefect.environment, stdout=subprocess.PIPE, stderr=errors,
        ) as flow,
    ):  # fmt: skip
        try:
            early = kill_in_the_midst(place, flow)
            told, _ = flow.communicate(timeout=200)
        finally:
            flow.kill()
    said = log.read_text()
    assert flow.returncode == 0, said
    ended = [json.loads(line) for line in told.splitlines()]
    assert [end[1:] for end in ended] == [
        ["Completed", f"{IMAGES} images by pspnet-demo version 1, {OTHERS} skipped"],
        ["Failed", "predict: pspnet-demo: has no version '9'; expected 1 (challenger) (champion)"],
    ]
    assert "predict: It was killed. The system does this when memory runs out." in said
    assert "Traceback" not in said
    assert said.count("predict: skipped ") == 20
    assert {path: path.stat().st_mtime_ns for path in early} == early

    table = pq.read_table(place / "predictions/predictions.parquet").to_pandas()
    assert len(table) == len(list((place / "predictions/masks").glob("*.png"))) == IMAGES
    assert not (worktree(place) / "predictions").exists()

    ours = [run for run, _, _ in ended]
    tasks = asked(prefect, "select name, state_name, run_count from task_run where {} order by start_time", ours)
    assert [(name.partition("-")[0], state, count) for name, state, count in tasks] == [
        ("predict", "Completed", 2),
        ("predict", "Failed", 1),
    ]
    [(summary,)] = asked(prefect, "select data from artifact where key = 'predictions' and {}", ours)
    text = json.loads(summary)
    assert f"# {IMAGES} images by pspnet-demo version 1, {OTHERS} skipped" in text
    assert f"Mean confidence **{table['confidence'].mean():.3f}**" in text
    for name in CLASSES:
        assert f"| {name} | {np.float64(table[f'share_{name}'].mean()):.2%} |" in text
    assert text.count("data:image/jpeg;base64,") == 4
    assert f"    {place}/photos/words/00.txt: cannot be recognized as an image" in text
    assert text.count(": cannot be recognized as an image") == 20
    assert "    and 3 more" in text
