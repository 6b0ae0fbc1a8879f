"""What a newcomer gets from a folder with inspect --write, plan and make retrain, without editing anything.

python benchmarks/newcomer.py --data FOLDER --work FOLDER --results newcomer.csv [--minutes 3] [SET ...]

The sets are those drawn by tests/inspection/sets.py, which imitate public sets, and everything in FOLDER: camvid/,
steel_defects/, cell_membranes/ and layouts/*. Each is copied into data/raw of a fresh clone of this checkout. If
`inspect` asks which reading to use, the first one is chosen. A row in the results says how far a set got: to a version
and the gate's decision on it, or to the first message of the command that failed. A set with a row is not run again.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.inspection import sets  # noqa: E402

COLUMNS = ["set", "minutes", "inspect", "plan", "retrain", "test_mean_iou", "training_minutes", "all_minutes"]


class Done(NamedTuple):
    status: int
    said: str

    @property
    def first_line(self) -> str:
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return lines[0][:200] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the clones; each is removed after its run")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("names", nargs="*", metavar="SET")
    own = parser.parse_args()
    found = {**sets.SETS, **real(own.data)}
    done = set()
    if own.results.exists():
        done = set(pd.read_csv(own.results)[["set", "minutes"]].itertuples(index=False, name=None))
    for name in own.names or found:
        if (name, own.minutes) in done:
            continue
        row = {"set": name, "minutes": own.minutes, **attempt(found[name], own.work / name, own.minutes)}
        new = not own.results.exists()
        with own.results.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


def real(data: Path) -> dict[str, Callable[[Path], Any]]:
    folders = [data / "camvid", data / "steel_defects", data / "cell_membranes", *sorted((data / "layouts").iterdir())]
    return {folder.name: partial(shutil.copytree, folder, dirs_exist_ok=True) for folder in folders if folder.is_dir()}


def attempt(fill: Callable[[Path], Any], clone: Path, minutes: float) -> dict[str, Any]:
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "data/raw").mkdir(parents=True)
    fill(clone / "data/raw")
    row = dict.fromkeys(COLUMNS[2:], "")
    inspected = call(clone, "data", "inspect", "data/raw", "--write")
    row["inspect"] = "written" if inspected.status == 0 else inspected.first_line
    if inspected.status and "--use" in inspected.said:
        inspected = call(clone, "data", "inspect", "data/raw", "--write", "--use", "1")
        row["inspect"] = "asks; 1 chosen" if inspected.status == 0 else f"asks; {inspected.first_line}"
    if inspected.status == 0:
        planned = call(clone, "plan", "--minutes", str(minutes))
        row["plan"] = "written" if planned.status == 0 else planned.first_line
        if planned.status == 0:
            began = time.monotonic()
            retrained = call(clone, "retrain")
            row["training_minutes"] = training_minutes(clone)
            row["all_minutes"] = f"{(time.monotonic() - began) / 60:.1f}"
            decision = re.search(r"Completed\('(.*)'\)", retrained.said)
            row["retrain"] = decision[1] if decision else retrained.first_line
            metrics = clone / "reports/metrics.json"
            row["test_mean_iou"] = f"{pd.read_json(metrics, typ='series')['mean_iou']:.3f}" if metrics.exists() else ""
    shutil.rmtree(clone)
    return row


def call(clone: Path, *words: str) -> Done:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(clone),
    }
    done = subprocess.run(["pspnet", *words], cwd=clone, env=environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stderr + done.stdout if done.returncode else done.stdout + done.stderr)


def training_minutes(clone: Path) -> str:
    """Return the minutes that MLflow recorded for fine-tuning. The plan's minutes cover only fine-tuning."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{clone}/.pspnet/mlflow.db")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            if run.info.run_name == "finetune" and run.info.end_time:
                return f"{(run.info.end_time - run.info.start_time) / 60_000:.2f}"
    return ""


if __name__ == "__main__":
    main()
