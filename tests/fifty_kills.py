"""`python -m tests.fifty_kills FOLDER` checks that SIGKILLs at random moments of a demo don't change its results.

Each trial is a separate checkout with an MLflow server. One kill hits the whole process tree, the command, one
process of its tree, Prefect's server, or MLflow's, which is then started again. The command is repeated until it
succeeds. Then the results must have the digests of an undisturbed run, with one version, one move and no process left,
and the command must have ended within a minute after the champion was set.

Results are appended to FOLDER/results.csv. If run again, the program resumes. `--kills` is the total number of kills.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests.e2e.pipeline import SYNTHESIZE, checkout, copied, digests, environment, run
from tests.flows.processes import cmdline, kill_all, left, processes_of
from tests.tracking.server import Server

MODEL = "pspnet-demo"
TARGETS = ("whole tree", "command", "one of the tree", "Prefect's server", "MLflow's server")
PARAMS = {"pretrain__epochs": 5, "finetune__epochs": 60, "promotion__min_mean_iou": 0.0}
ENDS_SECONDS = 900
WORK_IS_DONE_SECONDS = 60
AWAY_SECONDS = 3  # time until MLflow's server is started again
ATTEMPTS = 4
COLUMNS = ("trial", "target", "moment", "killed", "starts", "seconds", "after_the_champion", "wrong")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fifty_kills", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    source, undisturbed = folder / "source", folder / "undisturbed"
    if not source.exists():
        made = checkout(folder / "source.partial", **PARAMS)
        run(made, *SYNTHESIZE)
        made.rename(source)
    if not undisturbed.exists():
        shutil.rmtree(folder / "first", ignore_errors=True)
        first = Trial(folder / "first", source, expected=None)
        wrong = first.run(lambda: None, 0.0)
        if wrong:
            print("\n".join(["Undisturbed:", *wrong]), file=sys.stderr)
            return 1
        (folder / "seconds").write_text(str(first.seconds))
        first.checkout.rename(undisturbed)
    longest, expected = float((folder / "seconds").read_text()), digests(undisturbed)
    done = {int(row["trial"]) for row in _rows(folder)}
    for number in range(arguments.kills):
        if number not in done:
            rng = random.Random(number)
            target = TARGETS[number % len(TARGETS)]
            while True:
                moment = rng.uniform(0.02, 0.98) * longest
                shutil.rmtree(folder / "trial", ignore_errors=True)
                trial = Trial(folder / "trial", source, expected)
                wrong = trial.run(partial(trial.kill, target, rng), moment)
                if wrong or trial.killed != "nothing":  # otherwise, no such process existed or all of them had ended
                    break
            _keep(folder, (number, target, f"{moment:.1f}", trial.killed, trial.starts, f"{trial.seconds:.0f}",
                           f"{trial.after_the_champion:.1f}", "; ".join(wrong)))  # fmt: skip
            print(
                f"{number}: {target} after {moment:.1f} s ({trial.killed}): {'; '.join(wrong) or 'right'}", flush=True
            )
            if wrong:
                (folder / "trial").rename(folder / f"wrong-{number}")
    rows = _rows(folder)
    bad = [row["trial"] for row in rows if row["wrong"]]
    print(f"{len(rows)} kills, {len(rows) - len(bad)} right{'; wrong: ' if bad else ''}{', '.join(bad)}")
    return 1 if bad else 0


class Trial:
    def __init__(self, folder: Path, source: Path, expected: dict[str, str] | None) -> None:
        folder.mkdir()
        self.checkout = copied(source, folder / "checkout")
        self._log = folder / "said.log"
        self._mlflow = Server(folder / "mlflow")
        self._expected = expected
        self._command: subprocess.Popen[bytes] | None = None
        self.killed, self.starts, self.seconds, self.after_the_champion = "nothing", 0, 0.0, 0.0

    def run(self, disturb: Callable[[], None], moment: float) -> list[str]:
        """Run the trial. Returns a list of everything that is wrong afterwards."""
        self._mlflow.start()
        try:
            began = time.monotonic()
            for _ in range(ATTEMPTS):
                status = self._retrain(disturb if self.starts == 0 else lambda: None, moment)
                if status is None:
                    return ["it hung"]
                if still := left(self.checkout):
                    return [f"left behind: {still}"]
                if status == 0:
                    break
            self.seconds = time.monotonic() - began
            return self._wrong(status or 0)
        finally:
            kill_all(self.checkout)
            self._mlflow.stop()

    def kill(self, target: str, rng: random.Random) -> None:
        assert self._command is not None
        tree = [psutil.Process(self._command.pid), *psutil.Process(self._command.pid).children(recursive=True)]
        if target == "whole tree":
            self.killed = f"{len(tree)} processes"
            kill_all(self.checkout)
        elif target == "MLflow's server":
            self.killed = target
            self._mlflow.stop()
            time.sleep(AWAY_SECONDS)
            self._mlflow.start()
        else:
            servers = [one for one in processes_of(self.checkout) if "uvicorn" in cmdline(one)]
            chosen = {"command": tree[:1], "one of the tree": tree, "Prefect's server": servers}[target]
            if chosen:
                victim = rng.choice(sorted(chosen, key=lambda one: one.pid))
                self.killed = " ".join(cmdline(victim))[-60:]
                victim.kill()

    def _retrain(self, disturb: Callable[[], None], moment: float) -> int | None:
        """Run `pspnet retrain`. Returns its exit status, or None if it did not finish."""
        self.starts += 1
        env = environment(self.checkout, MLFLOW_TRACKING_URI=self._mlflow.uri, PSPNET_CHECKPOINT_SECONDS="1")
        with self._log.open("ab") as log:
            self._command = subprocess.Popen(["pspnet", "retrain"], cwd=self.checkout, env=env, stdout=log, stderr=log,
                                             start_new_session=True)  # fmt: skip
        began, champion = time.monotonic(), 0.0
        with suppress(subprocess.TimeoutExpired, psutil.NoSuchProcess):
            self._command.wait(moment)
        if self._command.poll() is None:
            with suppress(psutil.NoSuchProcess):
                disturb()
        while (status := self._command.poll()) is None:
            time.sleep(0.5)
            now = time.monotonic()
            champion = champion or (now if self._has_champion() else 0.0)
            if now - began > ENDS_SECONDS or (champion and now - champion > 2 * WORK_IS_DONE_SECONDS):
                os.killpg(self._command.pid, signal.SIGKILL)
                return None
        self.after_the_champion = max(self.after_the_champion, time.monotonic() - champion if champion else 0.0)
        return status

    def _has_champion(self) -> bool:
        try:
            return "champion" in MlflowClient(self._mlflow.uri).get_registered_model(MODEL).aliases
        except MlflowException:
            return False

    def _wrong(self, status: int) -> list[str]:
        client = MlflowClient(self._mlflow.uri)
        versions = client.search_model_versions(f"name = '{MODEL}'")
        audit = client.get_experiment_by_name(f"{MODEL}.promotions")
        moves = client.search_runs([audit.experiment_id]) if audit else []
        found = {
            f"the last start ended with {status}": status != 0,
            "other digests": self._expected not in (None, digests(self.checkout)),
            f"{len(versions)} versions": len(versions) != 1,
            f"{len(moves)} moves": [move.data.tags.get("state") for move in moves] != ["done"],
            "no champion": not self._has_champion(),
            f"{self.after_the_champion:.0f} s after the champion": self.after_the_champion > WORK_IS_DONE_SECONDS,
        }
        return [text for text, is_so in found.items() if is_so]


def _rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "results.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _keep(folder: Path, row: tuple[object, ...]) -> None:
    path = folder / "results.csv"
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([COLUMNS, row] if new else [row])


if __name__ == "__main__":
    sys.exit(main())
