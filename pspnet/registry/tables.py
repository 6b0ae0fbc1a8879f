"""`pspnet models` prints a table of versions, and `pspnet models history` prints a table of champion moves."""

import json
import os
from collections.abc import Collection
from dataclasses import asdict
from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from pspnet.machine import terminal
from pspnet.machine.credentials import hidden
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.records import DONE, Move
from pspnet.registry.versions import HOW_TO_REGISTER, Version
from pspnet.tracking.connection import SQLITE, tracking_uri


def models(registry: ModelRegistry, as_json: bool) -> None:
    registry.audit.settle()
    versions = registry.versions.all()
    if as_json:
        print(json.dumps([_facts(version) for version in versions], indent=2))  # noqa: T201
        return
    if not versions:
        terminal.out.print(f"{registry.versions.model} has no versions yet. {HOW_TO_REGISTER}")
        return
    champions = {move.to_version for move in registry.audit.moves() if move.state == DONE}
    table = Table("version", "", "test mIoU", "decision", "registered", "commit", "bundle",
                  title=registry.versions.model, title_justify="left", show_edge=False, pad_edge=False)  # fmt: skip
    for version in reversed(versions):
        table.add_row(
            str(version.number),
            ", ".join(f"[bold green]{alias}[/]" if alias == "champion" else alias for alias in version.aliases),
            "" if version.mean_iou is None else f"{version.mean_iou:.3f}",
            _decision(version, champions),
            f"{version.created.astimezone():%Y-%m-%d %H:%M}",
            version.tags.get("git.commit", "")[:7] + ("+" if version.tags.get("git.dirty") == "true" else ""),
            version.bundle[:8],
        )
    terminal.out.print(table)


def overview(registry: ModelRegistry) -> None:
    """Print the table of versions, and where to find runs and decisions."""
    models(registry, as_json=False)
    uri = tracking_uri(registry.state)
    if uri.startswith("http"):
        terminal.out.print(f"Runs, versions and decisions: {hidden(uri)}", markup=False)
    else:
        if uri.startswith(SQLITE):
            uri = f"{SQLITE}{os.path.relpath(uri.removeprefix(SQLITE))}"
        command = f"MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri {hidden(uri)}"
        terminal.out.print(f"Runs, versions and decisions: {command}", markup=False)


def history(registry: ModelRegistry, as_json: bool) -> None:
    registry.audit.settle()
    moves = registry.audit.moves()
    if as_json:
        print(json.dumps([asdict(move) for move in moves], indent=2))  # noqa: T201
        return
    if not moves:
        terminal.out.print(f"{registry.versions.model} has not had a champion yet.")
        return
    table = Table("", "what", "from", "to", "who", "when", "why", "state",
                  title=f"champions of {registry.versions.model}",
                  title_justify="left", show_edge=False, pad_edge=False)  # fmt: skip
    for move in moves:
        table.add_row(*map(escape, _row(move)))
    terminal.out.print(table)


def _row(move: Move) -> tuple[str, ...]:
    when = datetime.fromisoformat(move.when).astimezone()
    who = f"{move.who} on {move.host}" if move.host else move.who
    why = f"{move.why} ({move.note})" if move.note else move.why
    return (str(move.number), move.kind, str(move.from_version or "-"), str(move.to_version or "-"),
            who, f"{when:%Y-%m-%d %H:%M}", why, move.state)  # fmt: skip


def _decision(version: Version, champions: Collection[int]) -> str:
    outcome = version.tags.get("decision", "")
    waits = version.tags.get("approval") == "waiting" and version.number not in champions
    return "passed, waiting for approval" if outcome == "passed" and waits else outcome


def _facts(version: Version) -> dict[str, object]:
    return {
        "version": version.number,
        "aliases": version.aliases,
        "bundle": version.bundle,
        "test_mean_iou": version.mean_iou,
        "registered": version.created.astimezone(UTC).isoformat(timespec="seconds"),
        "run_id": version.run_id,
        "tags": dict(version.tags),
    }
