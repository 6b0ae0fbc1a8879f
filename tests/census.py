"""A pytest plugin that prints the cost of each test file: `pytest -p tests.census`.

The cost is the time in seconds, the number of processes started, and how many of them loaded torch, MLflow or Prefect.
Every Python process that a test starts has `census_hook/sitecustomize.py` on its path, which appends lines to one log.
A process counts toward the test that `PYTEST_CURRENT_TEST` specified when the process started.
"""

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

HEAVY = ("torch", "mlflow", "prefect")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        log = Path(tempfile.mkdtemp(prefix="census-")) / "log"
        os.environ["PSPNET_CENSUS"] = str(log)
        hook = str(Path(__file__).with_name("census_hook"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [hook, os.environ.get("PYTHONPATH")]))
        config.pluginmanager.register(_Table(log))


class _Table:
    def __init__(self, log: Path) -> None:
        self.log = log
        self.seconds: dict[str, float] = defaultdict(float)
        self.tests: dict[str, int] = defaultdict(int)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration
        self.tests[file] += report.when == "call"

    @pytest.hookimpl(hookwrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
        yield
        started: dict[str, set[int]] = defaultdict(set)
        loaded: dict[tuple[str, str], set[int]] = defaultdict(set)
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            entry = json.loads(line)
            file = entry["test"].partition("::")[0]
            started[file].add(entry["process"])
            if entry["loaded"]:
                loaded[file, entry["loaded"]].add(entry["process"])
        columns = ("seconds", "tests", "processes", *HEAVY)
        terminalreporter.write_sep("=", "cost of each test file")
        terminalreporter.write_line(f"| file | {' | '.join(columns)} |")
        terminalreporter.write_line("|---|" + "--:|" * len(columns))
        rows = []
        for file in sorted(self.seconds, key=lambda file: -self.seconds[file]):
            heavy = [len(loaded[file, name] & started[file]) for name in HEAVY]  # not pytest's own process
            rows.append((file, self.seconds[file], [self.tests[file], len(started[file]), *heavy]))
        everything = [sum(column) for column in zip(*(counts for *_, counts in rows), strict=True)]
        for file, seconds, counts in [*rows, ("all", sum(self.seconds.values()), everything)]:
            terminalreporter.write_line(f"| {file} | {seconds:.1f} | {' | '.join(map(str, counts))} |")
