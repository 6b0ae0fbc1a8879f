"""Handles earlier stages' journals: sends what MLflow does not have yet, and removes the oldest delivered journals."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import filelock

from pspnet.machine import events
from pspnet.machine.credentials import hidden
from pspnet.tracking.connection import connect, reason, short_timeouts, tracking_uri
from pspnet.tracking.delivery import Delivery, lock
from pspnet.tracking.journal import JOURNAL
from pspnet.tracking.receipt import Receipt

KEPT = 50  # delivered journals to keep per stage; if their work is repeated, it continues the same run
UNNAMED_SECONDS = 7 * 24 * 3600  # a log that no journal mentions by then never will be: its reader was killed


def replay(state: Path, stop: Callable[[], bool] = lambda: False) -> list[str]:
    """Deliver the pending entries of all journals, or stop early once `stop` returns true.

    Returns a message for each failure. MLflow is not loaded if there is nothing to send.
    """
    deliveries = [delivery for folder in journals(state) if (delivery := unsent(state, folder))]
    if not deliveries:
        return []
    failures = []
    with short_timeouts():
        try:
            client = connect(state)
        except Exception as error:
            return [failure(state, delivery, error) for delivery in deliveries]
        for delivery in deliveries:
            if stop():
                break
            try:
                with lock(delivery.folder):
                    delivery.send(client)
            except filelock.Timeout:
                continue  # the journal's own sender is delivering it
            except Exception as error:
                delivery.record_failure(error)
                failures.append(failure(state, delivery, error))
    return failures


def failure(state: Path, delivery: Delivery, error: Exception) -> str:
    return undelivered(state, delivery.folder, len(delivery.pending), reason(error))


def undelivered(state: Path, folder: Path, records: int, why: str) -> str:
    what = "1 record has" if records == 1 else f"{records} records have"
    where = hidden(tracking_uri(state))
    return f"{folder.name}: {what} not reached MLflow at {where} ({why}); kept in {folder} and sent with the next run."


def journals(state: Path) -> list[Path]:
    return sorted(path.parent for path in (state / "tracking").glob(f"*/{JOURNAL}"))


def unsent(state: Path, folder: Path) -> Delivery | None:
    """A delivery for the journal, or None if the journal has no pending entries."""
    receipt = Receipt.of(folder)
    # Each new attempt adds a line to this file.
    if receipt.ended and receipt.offsets.get(JOURNAL) == (folder / JOURNAL).stat().st_size:
        return None
    delivery = Delivery(state, folder)
    delivery.end_if_dead()
    return delivery if delivery.pending else None


def prune(state: Path) -> None:
    """Remove the oldest delivered journals of each stage, and old event logs that no journal mentions."""
    kept: Counter[str] = Counter()
    newest_first = sorted(journals(state), key=lambda folder: (folder / JOURNAL).stat().st_mtime, reverse=True)
    for folder in newest_first:
        if Receipt.of(folder).ended:
            stage = folder.name.rpartition("-")[0]
            kept[stage] += 1
            if kept[stage] > KEPT:
                shutil.rmtree(folder, ignore_errors=True)
    _prune_logs(state.resolve())


def _prune_logs(state: Path) -> None:
    named = {
        (folder / entry["file"]).resolve()
        for folder in journals(state)
        for entry, _ in events.read(folder / JOURNAL)
        if entry["kind"] == "log"
    }
    for log in (state / events.FOLDER).glob("*.jsonl"):
        if log not in named and log.stat().st_mtime < time.time() - UNNAMED_SECONDS:
            log.unlink(missing_ok=True)
