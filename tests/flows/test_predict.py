"""The flow in a worktree of a checkout, as a worker runs it, with a Prefect API of its own."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.dataset.rawdata import encoded, noise, write
from tests.e2e.pipeline import checkout, environment, run

IMAGES, OTHERS = 60, 23
CLASSES = ("sky", "road", "car")

REGISTER = """
from pathlib import Path
from pspnet.offline import go_offline
go_offline()
from pspnet.commands.register import Results, register
from pspnet.commands.workshop import open_workshop
from pspnet.config.params import load_params
from tests.registry.registrar import make
made, params = Path(".pspnet/made"), load_params(Path("params.yaml"))
make(made, 1, ("sky", "road", "car"), params.predict)
shop = open_workshop(Path(".pspnet"), params)
register(shop, Results(made / "bundle", made / "report", made / "nothing", made / "nothing"))
shop.versions.set_alias("champion", 1)
"""

FLOW = """
import json, sys
from pathlib import Path
from pspnet.offline import go_offline, prefect_here
go_offline()
prefect_here(Path(sys.argv[1]))
from flows import server
server.start_for_this_run(Path(sys.argv[1]))
from flows.predict import predict
for model in ("champion", "9"):
    state = predict("photos", "predictions", model, return_state=True)
    print(json.dumps([state.name, state.message]), flush=True)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = checkout(tmp_path / "checkout")
    run(folder, sys.executable, "-c", REGISTER)
    for number in range(IMAGES):
        write(folder / f"photos/{number:02}.png", encoded(noise(160, 200, seed=number)))
    for number in range(OTHERS):
        write(folder / f"photos/words/{number:02}.txt", "These are words.\n")
    run(folder, "git", "worktree", "add", "--quiet", "--detach", str(worktree(folder)), "HEAD")
    return folder


def worktree(place: Path) -> Path:
    """Where a worker lays out what it runs."""
    return place / ".pspnet/runs/the-run"


def asked(place: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(place / ".pspnet/prefect/prefect.db")) as database:
        return database.execute(query).fetchall()


def kill_in_the_midst(place: Path, flow: subprocess.Popen[str]) -> dict[Path, int]:
    """The version's own process; returns when each mask was written that was done by then."""
    while len(list((place / "predictions/masks").glob("*.png"))) < 5:
        assert flow.poll() is None
        time.sleep(0.01)
    [command] = [child for child in psutil.Process(flow.pid).children(recursive=True) if "predict" in child.cmdline()]
    assert str(place / ".pspnet/versions") in command.environ()["PYTHONPATH"]
    command.send_signal(signal.SIGKILL)
    command.wait(10)
    masks = sorted((place / "predictions/masks").glob("*.png"))
    assert len(masks) < IMAGES
    return {path: path.stat().st_mtime_ns for path in masks[:-1]}  # it may have been at work on the last


def test_a_folder_is_predicted_by_the_champion_though_it_is_killed_and_a_mistake_is_told(place: Path) -> None:
    log = place.parent / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", FLOW, str(place / ".pspnet")], cwd=worktree(place), text=True,
            env=environment(worktree(place)), stdout=subprocess.PIPE, stderr=errors,
        ) as flow,
    ):  # fmt: skip
        try:
            early = kill_in_the_midst(place, flow)
            told, _ = flow.communicate(timeout=200)
        finally:
            flow.kill()
    said = log.read_text()
    assert flow.returncode == 0, said
    assert [json.loads(line) for line in told.splitlines()] == [
        ["Completed", f"{IMAGES} images by pspnet-demo version 1, {OTHERS} skipped"],
        ["Failed", "predict: pspnet-demo: has no version '9'; expected 1 (challenger) (champion)"],
    ]
    assert "predict: It was killed, as the system does when memory runs out." in said
    assert "Traceback" not in said
    assert said.count("predict: skipped ") == 20
    assert {path: path.stat().st_mtime_ns for path in early} == early

    table = pq.read_table(place / "predictions/predictions.parquet").to_pandas()
    assert len(table) == len(list((place / "predictions/masks").glob("*.png"))) == IMAGES
    assert not (worktree(place) / "predictions").exists()

    runs = asked(place, "select name, state_name, run_count from task_run order by start_time")
    assert [(name.partition("-")[0], state, count) for name, state, count in runs] == [
        ("predict", "Completed", 2),
        ("predict", "Failed", 1),
    ]
    [(summary,)] = asked(place, "select data from artifact where key = 'predictions'")
    text = json.loads(summary)
    assert f"# {IMAGES} images by pspnet-demo version 1, {OTHERS} skipped" in text
    assert f"Mean confidence **{table['confidence'].mean():.3f}**" in text
    for name in CLASSES:
        assert f"| {name} | {np.float64(table[f'share_{name}'].mean()):.2%} |" in text
    assert text.count("data:image/jpeg;base64,") == 4
    assert f"    {place}/photos/words/00.txt: cannot be recognised as an image" in text
    assert text.count(": cannot be recognised as an image") == 20
    assert "    and 3 more" in text
