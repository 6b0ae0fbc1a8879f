"""`python -m tests.fuzz NAME --minutes N` looks for crashes, hangs over 10 s and memory over 1 GB.

The current input is always in FOLDER/NAME.input, so it survives a crash. A failing input ends the run with status 1 and
is kept as FOLDER/NAME-DIGEST: copy it to tests/fuzz/seeds/NAME to make it a test.
"""

import argparse
import faulthandler
import hashlib
import itertools
import sys
import tempfile
import time
import traceback
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import names, target

MOST_SECONDS = 10
MOST_MB = 1000
ROUND = 300  # hypothesis keeps every input of a round in memory


class TimeUp(Exception):
    """The time is up, which is not a failure."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="default: a new seed each time")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "pspnet-fuzz"))
    arguments = parser.parse_args()
    aim = target(arguments.name)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    current = arguments.folder / f"{aim.name}.input"
    memory, began = psutil.Process().memory_info, time.monotonic()
    counted, slowest, peak = 0, 0.0, 0.0

    def run(data: bytes) -> None:
        nonlocal counted, slowest, peak
        current.write_bytes(data)
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)  # this also stops an endless loop in C
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            aim.one(data, Path(folder))
        faulthandler.cancel_dump_traceback_later()
        counted, slowest = counted + 1, max(slowest, time.monotonic() - started)
        peak = max(peak, memory().rss / 1e6)
        if peak > MOST_MB:
            raise MemoryError(f"The process uses {peak:,.0f} MB; expected at most {MOST_MB:,}.")

    def run_round(number: int) -> None:
        # Without shrinking and replay, the first failure ends the run, and the failing input is kept unchanged.
        @seed(number)
        @settings(
            max_examples=ROUND, deadline=None, database=None, derandomize=False, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        @given(aim.inputs)
        def fuzz(data: bytes) -> None:
            if time.monotonic() - began > 60 * arguments.minutes:
                raise TimeUp
            run(data)

        fuzz()

    print(f"{aim.name}: seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    faulthandler.enable()
    failed = False
    try:
        for path in aim.seeds:
            run(path.read_bytes())
        for number in itertools.count(arguments.seed):
            run_round(number)
    except TimeUp:
        pass
    except BaseException:
        traceback.print_exc()
        failed = True
        data = current.read_bytes()
        kept = arguments.folder / f"{aim.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        kept.write_bytes(data)
        print(f"Kept: {kept} ({len(data):,} bytes)")
    current.unlink(missing_ok=True)
    found = "1 failed" if failed else "none failed"
    print(f"{counted:,} inputs, the slowest took {slowest:.1f} s, peak memory {peak:,.0f} MB; {found}.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
