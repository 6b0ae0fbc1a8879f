"""Reads the hand-picked wrong changes from listed.yaml."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.faults.trials import Change


@dataclass(frozen=True)
class Fault:
    package: str
    name: str
    says: str  # describes the mistake in plain words
    change: Change
    tests: tuple[str, ...]


def listed() -> list[Fault]:
    packages = yaml.safe_load(Path(__file__).with_name("listed.yaml").read_text(encoding="utf-8"))
    return [
        Fault(
            package,
            one["name"],
            one["says"],
            Change(one["file"], one["old"], one["new"]),
            tuple(f"tests/{test}" for test in one["tests"]),
        )
        for package, faults in packages.items()
        for one in faults
    ]
