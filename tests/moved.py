"""Checks that no proof was lost: each test id of an older commit is still there, or `moved.tsv` names its successor.

    pytest --collect-only -q > old.txt        in a checkout of the older commit (25bd0fb for today's moved.tsv)
    python -m tests.moved old.txt

A line of `moved.tsv` is an old id, a tab, and the id of the test that proves the same now. An old id that ends in `*`
stands for all ids that begin so; a new one without its parameters, for the test with all of them.
"""

import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_suffix(".tsv")


def main(old: Path) -> int:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    now = ids(subprocess.check_output(command, text=True))
    before = ids(old.read_text(encoding="utf-8"))
    known = now | {name.partition("[")[0] for name in now}
    moved = dict(line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines())
    gone = sorted(before - now)
    lost = [name for name in gone if successor(name, moved) is None]
    dangling = sorted({new for new in moved.values() if new not in known})
    print(f"{len(before)} tests before, {len(now)} now: {len(before & now)} kept, {len(gone) - len(lost)} moved")
    for title, names in (("gone without a successor", lost), ("successors that do not exist", dangling)):
        if names:
            print("\n".join([f"{len(names)} {title}:", *names]))
    return bool(lost or dangling)


def ids(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("tests/") and "::" in line}


def successor(name: str, moved: dict[str, str]) -> str | None:
    patterns = [old for old in moved if old == name or (old.endswith("*") and name.startswith(old[:-1]))]
    return moved[max(patterns, key=len)] if patterns else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
