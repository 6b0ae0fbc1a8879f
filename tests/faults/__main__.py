"""`python -m tests.faults` introduces each fault into a copy of the tree and runs the tests that should notice it.

Exits with status 1 if any fault is missed. `--mutants` draws random changes instead and prints the share caught.
"""

import argparse
import csv
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from tests.faults.listed import Fault, listed
from tests.faults.mutants import PARTS, SHARES, Mutant, drawn
from tests.faults.trials import Result, Trial, Trials, load_libraries

FAST = "not e2e and not kills and not team"
Named = TypeVar("Named", Fault, Mutant)
MISSED = "MISSED"
COLUMNS = ("suite", "kind", "name", "what", "caught by", "seconds", "test")


def main() -> int:
    arguments = _arguments()
    if arguments.table:
        print("\n".join(_table(_read(arguments.table))))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tree = arguments.tree.resolve()
    began = time.monotonic()
    load_libraries(tree)
    home = Path(tempfile.mkdtemp(prefix="pspnet-faults-"))
    home.chmod(0o755)  # PostgreSQL uses this folder as a different user
    try:
        trials = Trials(tree, home, arguments.at_once)
        rows = _mutants(trials, tree, arguments) if arguments.mutants else _faults(trials, tree, arguments)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(home, ignore_errors=True)
    missed = [row["name"] for row in rows if row["caught by"] == MISSED]
    share = f"{len(rows) - len(missed)} of {len(rows)} caught in {time.monotonic() - began:.0f} s"
    print(f"{share}{'; missed: ' if missed else ''}{', '.join(missed)}")
    return 1 if missed and not arguments.mutants else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--mutants", action="store_true", help="random changes, each against its package's tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[2], help="the checkout to copy and change")
    parser.add_argument("--results", type=Path, help="CSV file in which to replace the rows of this suite")
    parser.add_argument("--suite", default="now", help="the name of these rows in the CSV file")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="only print a results file as Markdown")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass without a fault")
    return parser.parse_args()


def _faults(trials: Trials, tree: Path, arguments: argparse.Namespace) -> list[dict[str, str]]:
    chosen = _named(listed(), arguments.names)
    wanted = [Trial(one.name, one.change, _that_are_there(tree, one.tests)) for one in chosen]
    trials.check(wanted)
    if not arguments.no_baseline:
        tests = [test for trial in wanted for test in trial.tests]
        _check_baseline(trials, _shared_out(tests, arguments.at_once), "")
    what = {one.name: f"{one.package}: {one.says}" for one in chosen}
    return list(_tried(trials, wanted, "fault", what, arguments).values())


def _named(every: Sequence[Named], names: Sequence[str]) -> list[Named]:
    """Pick the items with these names, in this order, or all items if there are no names."""
    by_name = {one.name: one for one in every}
    if unknown := [name for name in names if name not in by_name]:
        raise SystemExit(f"Unknown: {', '.join(unknown)}. Known names: {', '.join(by_name)}")
    return [by_name[name] for name in names] or list(every)


def _that_are_there(tree: Path, tests: Sequence[str]) -> tuple[str, ...]:
    """Return the tests that exist in this tree. A different checkout may not have all of them."""
    return tuple(test for test in tests if (tree / test.partition("::")[0]).exists())


def _mutants(trials: Trials, tree: Path, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Try each mutant on its package's fast tests, then try the mutants that these tests miss on the slow tests."""
    mutants = _named(drawn(tree, arguments.seed), arguments.names)
    what = {one.name: one.what for one in mutants}
    rows: dict[str, dict[str, str]] = {}
    for markers in (FAST, "e2e"):
        left = [one for one in mutants if rows.get(one.name, {}).get("caught by", MISSED) == MISSED]
        if not arguments.no_baseline:
            groups = {one.part: [*_that_are_there(tree, PARTS[one.part][1])] for one in left}
            _check_baseline(trials, list(groups.values()), markers)
        wanted = [Trial(one.name, one.change, one.tests, markers) for one in left]
        rows |= _tried(trials, wanted, "mutant", what, arguments)
    for part in SHARES:
        own = [rows[one.name]["caught by"] for one in mutants if one.part == part]
        if own:
            print(f"{part}: {len(own) - own.count(MISSED)} of {len(own)}")
    return list(rows.values())


def _tried(
    trials: Trials, wanted: Sequence[Trial], kind: str, what: Mapping[str, str], arguments: argparse.Namespace
) -> dict[str, dict[str, str]]:
    """Run the trials. Returns rows by name. Each row is saved as soon as its trial ends. A change without tests counts
    as missed.
    """
    rows: dict[str, dict[str, str]] = {}
    results = chain(
        ((trial, Result(passed=True)) for trial in wanted if not trial.tests),
        trials.run([trial for trial in wanted if trial.tests]),
    )
    for trial, result in results:
        by, test = (MISSED, "") if result.passed else (result.tier, result.test)
        print(f"{trial.name:<30} {by:<7} {result.seconds:5.0f} s  {test}", flush=True)
        values = (arguments.suite, kind, trial.name, what[trial.name], by, f"{result.seconds:.0f}", test)
        rows[trial.name] = dict(zip(COLUMNS, values, strict=True))
        if arguments.results:
            _keep(arguments.results, rows[trial.name])
    return rows


def _shared_out(tests: Sequence[str], count: int) -> list[list[str]]:
    """Divide the tests into `count` groups. All tests of a file go into the same group."""
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(tests):
        files.setdefault(test.partition("::")[0], []).append(test)
    groups: list[list[str]] = [[] for _ in range(count)]
    for number, (file, own) in enumerate(sorted(files.items())):
        groups[number % count] += [file] if file in own else own
    return [group for group in groups if group]


def _check_baseline(trials: Trials, groups: Sequence[Sequence[str]], markers: str) -> None:
    """Check that these tests pass on the unchanged code."""
    baseline = [
        Trial(f"baseline-{number}", None, tuple(group), markers, stop_at_first=False)
        for number, group in enumerate(groups, start=1)
    ]
    for trial, result in trials.run(baseline):
        if not result.passed:
            raise SystemExit(f"Without any change, {result.test} fails:\n{trials.log(trial)}")
        print(f"{trial.name}: the tests pass without a change, {result.seconds:.0f} s", flush=True)


def _keep(path: Path, row: dict[str, str]) -> None:
    """Save the row, replacing any row with the same suite and name."""
    known = _read(path) if path.exists() else []
    rows = [one for one in known if (one["suite"], one["name"]) != (row["suite"], row["name"])]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows([*rows, row])


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _table(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield a Markdown table with a row for each change, a column for each suite, and the number of changes that each
    suite caught.
    """
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    for kind in ("fault", "mutant"):
        own = [row for row in rows if row["kind"] == kind]
        caught = {(row["suite"], row["name"]): row["caught by"] for row in own}
        yield from ("", f"| {kind} | |{''.join(f' {one} |' for one in suites)}", f"|---|---|{'---|' * len(suites)}")
        for name, what in {row["name"]: row["what"].replace("|", r"\|") for row in own}.items():
            by_suite = (caught.get((suite, name), "") for suite in suites)
            yield f"| {name} | {what} | {' | '.join(by_suite)} |"
        sums = [[by for (of, _), by in caught.items() if of == suite] for suite in suites]
        shares = (f" {len(by) - by.count(MISSED)} of {len(by)} |" for by in sums)
        yield f"| caught | |{''.join(shares)}"


if __name__ == "__main__":
    sys.exit(main())
