"""Delivers a journal to MLflow.

An interrupted delivery can be repeated without creating a second run or a second row.
"""

import logging
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from pspnet.machine.events import Event, append, event
from pspnet.machine.process import is_alive
from pspnet.tracking.connection import experiment, reason, server_identity
from pspnet.tracking.entities import dataset, metrics
from pspnet.tracking.journal import KILLED, JournalReader, Record, ended, entry_key
from pspnet.tracking.pipeline import add_params, ensure_pipeline, ensure_run
from pspnet.tracking.receipt import Receipt

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

FOLLOWED = "pspnet.followed"  # tag of a pipeline run: the time of the stage entry that last set the run's status
METRICS_AT_ONCE = 1000  # the maximum number in one request
TOO_LATE = 3  # exit status of a sender that ran out of time


class Delivery:
    """Delivers one journal. Only the process that has locked the journal may deliver it."""

    def __init__(self, state: Path, folder: Path) -> None:
        self._state, self.folder = state, folder
        self._reader = JournalReader(folder)
        self._records: list[Record] = []
        self._seen = set[str]()
        self._receipt = Receipt.of(folder)
        self._run: Run | None = None
        self._pipelines: dict[str, Run] = {}
        self.read_journal()

    def read_journal(self) -> None:
        """Read the entries written since the last call."""
        for record in self._reader.new():
            key = entry_key(record.entry)
            if key not in self._seen:  # two processes doing the same work may both have written the entry
                self._seen.add(key)
                self._records.append(record)
        if self._records and self._receipt.journal != self._header["id"]:
            self._receipt = Receipt(journal=self._header["id"])

    @property
    def run_id(self) -> str:
        return self._receipt.run_id

    @property
    def pending(self) -> list[Record]:
        offsets = self._receipt.offsets
        return [record for record in self._records if record.end > offsets.get(record.file, 0)]

    @property
    def ended(self) -> bool:
        """Whether the journal contains the end of the latest attempt."""
        begin = self._begin()
        return begin is not None and ended((record.entry for record in self._records), begin.entry["attempt"])

    def end_if_dead(self) -> None:
        """If the stage's process was killed, write the end entry for it."""
        begin = self._begin()
        if begin is None or self.ended or _alive(begin.entry["process"]):
            return
        append(self.folder / begin.file, event("end", attempt=begin.entry["attempt"], **KILLED))
        self.read_journal()

    def send(self, client: "MlflowClient") -> None:
        """Deliver the pending entries."""
        if pending := self.pending:
            run = self._run = self._run or self._find_run(client)
            pending = self.pending  # read again, because a new run needs all entries
            for group in _groups(pending):
                self._send_group(client, run, [record.entry for record in group])
                self._advance({record.file: record.end for record in group})
                for entry in (record.entry for record in group):
                    if entry["kind"] == "artifact":
                        shutil.rmtree((self.folder / entry["file"]).parent, ignore_errors=True)
        receipt = self._receipt
        if receipt.offsets != self._reader.offsets or receipt.ended != self.ended or receipt.trouble:
            self._advance(self._reader.offsets)  # skip duplicates
        if self.ended:
            shutil.rmtree(self.folder / "artifacts", ignore_errors=True)

    def record_failure(self, error: Exception) -> None:
        """Record in the receipt why nothing can be delivered."""
        if self._receipt.trouble != (trouble := reason(error)):
            self._receipt.trouble = trouble
            self._receipt.write(self.folder)

    def _advance(self, offsets: dict[str, int]) -> None:
        self._receipt.offsets, self._receipt.trouble = self._receipt.offsets | offsets, ""
        self._receipt.ended = self.ended and self._receipt.offsets == self._reader.offsets
        self._receipt.write(self.folder)

    @property
    def _header(self) -> Event:
        return self._records[0].entry

    def _begin(self, attempt: int | None = None) -> Record | None:
        """The begin entry of an attempt, by default the latest."""
        begins = [record for record in self._records if record.entry["kind"] == "begin"]
        if attempt is not None:
            begins = [begin for begin in begins if begin.entry["attempt"] == attempt]
        return max(begins, key=lambda begin: begin.entry["attempt"], default=None)

    def _is_latest(self, entry: Event) -> bool:
        begin = self._begin()
        return begin is not None and begin.entry["attempt"] == entry["attempt"]

    def _find_run(self, client: "MlflowClient") -> "Run":
        """The run in the receipt. If the server does not have that run, a new run is created for the whole journal."""
        header = self._header
        experiment_id = experiment(client, self._state, header["experiment"])
        server = server_identity(client, experiment_id)
        self._pipelines = {}
        if server == self._receipt.server and (run := _usable(client, self._receipt.run_id)):
            return run
        stage = header["stage"]
        tags = {"pspnet.kind": "stage", "pspnet.stage": stage, "mlflow.source.name": f"pspnet {stage}"}
        mark, name = ("pspnet.journal", header["id"]), str(header.get("name", stage))
        run = ensure_run(client, experiment_id, mark, name, tags, header["started"])
        self._receipt = Receipt(header["id"], server, run.info.run_id)
        return run

    def _send_group(self, client: "MlflowClient", run: "Run", group: list[Event], alone: bool = False) -> None:
        """Send a group of entries.

        If the server rejects the group, send its entries one by one, and drop those that are rejected again.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._send_entries(client, run, group)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"):
                raise
            if _usable(client, run.info.run_id) is None:  # someone deleted the run
                self._run, self._receipt.server = None, ""
                raise
            if alone:
                logger.warning("The server rejected %s: %s", group[0], error)
                return
            self._pipelines = {}  # the deleted run may be a pipeline run
            for entry in group:
                self._send_group(client, run, [entry], alone=True)

    def _send_entries(self, client: "MlflowClient", run: "Run", group: list[Event]) -> None:
        """Send the entries of a group. Metrics are sent together, and every other entry separately."""
        run_id = run.info.run_id
        first = group[0]
        match first["kind"]:
            case "epoch" | "figures":
                _log_metrics(client, run_id, [metric for entry in group for metric in metrics(entry)])
            case "journal":
                add_params(client, run, first["params"])
            case "begin":
                self._send_begin(client, run_id, first)
            case "headline":
                self._send_headline(client, first)
            case "dataset":
                client.log_inputs(run_id, [dataset(first)])
            case "artifact":
                self._send_artifact(client, run_id, first)
            case "end":
                self._send_end(client, run_id, first)

    def _send_begin(self, client: "MlflowClient", run_id: str, entry: Event) -> None:
        from mlflow.entities import RunTag

        if not self._is_latest(entry):
            return
        tags = {**entry["tags"], **entry.get("own_tags", {}), "pspnet.attempts": str(entry["attempt"])}
        if pipeline := self._pipeline(client, _key(entry)):
            tags["mlflow.parentRunId"] = pipeline.info.run_id
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if not self.ended:
            client.update_run(run_id, "RUNNING")
            self._follow(client, _key(entry), "RUNNING", entry["time"])

    def _send_end(self, client: "MlflowClient", run_id: str, entry: Event) -> None:
        if self._is_latest(entry):
            if entry["message"] or entry["attempt"] > 1:  # a first attempt has no old message to clear
                client.set_tag(run_id, "pspnet.message", entry["message"])
            client.set_terminated(run_id, entry["status"], entry["time"])
        if begin := self._begin(entry["attempt"]):
            self._follow(client, _key(begin.entry), entry["status"], entry["time"])

    def _send_headline(self, client: "MlflowClient", entry: Event) -> None:
        """Send headline metrics to the pipeline run, except those that the run already has from another stage."""
        if pipeline := self._pipeline(client, entry["pipeline"]):
            known = pipeline.data.metrics
            new = [metric for metric in metrics(entry) if known.get(metric.key) != metric.value]
            _log_metrics(client, pipeline.info.run_id, new)

    def _send_artifact(self, client: "MlflowClient", run_id: str, entry: Event) -> None:
        path = self.folder / entry["file"]
        if path.exists():
            folder = str(Path(entry["name"]).parent)
            client.log_artifact(run_id, str(path), None if folder == "." else folder)
        else:
            logger.info("Already sent, perhaps to another server: %s", entry["name"])

    def _follow(self, client: "MlflowClient", key: str | None, status: str, time_ms: int) -> None:
        """Set the status of the pipeline run to the status of the most recently active stage."""
        if (pipeline := self._pipeline(client, key)) is None:
            return
        run_id = pipeline.info.run_id
        if int(client.get_run(run_id).data.tags.get(FOLLOWED, 0)) > time_ms:
            return
        if status == "RUNNING":
            client.update_run(run_id, status)
        else:
            client.set_terminated(run_id, status, time_ms)
        client.set_tag(run_id, FOLLOWED, str(time_ms))

    def _pipeline(self, client: "MlflowClient", key: str | None) -> "Run | None":
        if key is None:
            return None
        if key not in self._pipelines:
            experiment_id = experiment(client, self._state, self._header["experiment"])
            entries = (record.entry for record in self._records)
            begin = next(entry for entry in entries if entry["kind"] == "begin" and _key(entry) == key)
            parent, tags = begin["pipeline"], begin["tags"]
            kind = parent.get("kind", "pipeline")
            self._pipelines[key] = ensure_pipeline(
                client, experiment_id, key, parent["params"], tags, begin["started"], kind
            )
        return self._pipelines[key]


def lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / "lock", timeout=0)


def _groups(pending: list[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in pending:
        entry = record.entry
        count = len(entry["values"]) if entry["kind"] in ("epoch", "figures") else METRICS_AT_ONCE
        if group and size + count > METRICS_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(record)
        size += count
    if group:
        yield group


def _log_metrics(client: "MlflowClient", run_id: str, found: "list[Metric]") -> None:
    for start in range(0, len(found), METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=found[start : start + METRICS_AT_ONCE])


def _key(begin: Event) -> str | None:
    """The key of the pipeline to which an attempt belongs."""
    return begin["pipeline"]["key"] if begin.get("pipeline") else None


def _usable(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _alive(process: dict[str, Any]) -> bool:
    """Whether the process is alive. A process on another machine counts as alive, because it cannot be checked."""
    if process["host"] != platform.node():
        return True
    return is_alive(process["pid"], process["created"])
