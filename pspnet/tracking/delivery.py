"""Journals on their way to MLflow. What is interrupted here can be done again: no second run, no second row."""

import json
import logging
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from pspnet.credentials import hidden
from pspnet.outputs import whole_file
from pspnet.process import is_alive
from pspnet.tracking.connection import connect, experiment, identity, impatience, reason, tracking_uri
from pspnet.tracking.journal import JOURNAL, KILLED, Entry, append, ended, read
from pspnet.tracking.journal import identity as told
from pspnet.tracking.pipeline import add_params, ensure_pipeline, ensure_run

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

RECEIPT = "receipt.json"
FOLLOWED = "pspnet.followed"  # tag of a pipeline's run: when the stage that decided its status told so
METRICS_AT_ONCE = 1000  # as many as one request may hold
LONGEST_DIGEST = 36
TOO_LATE = 3  # exit status of a sender that ran out of time
KEPT = 50  # delivered journals of one stage: the same work done again goes on in the same run


@dataclass
class Receipt:
    """How far a journal has been delivered, and where to."""

    journal: str = ""
    server: str = ""  # the identity of its experiment
    run_id: str = ""
    offset: int = 0
    ended: bool = False  # and the latest attempt is over
    trouble: str = ""  # why it is not further, if something is in the way

    @classmethod
    def of(cls, folder: Path) -> "Receipt":
        try:
            return cls(**json.loads((folder / RECEIPT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        with whole_file(folder / RECEIPT) as partial:
            partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


class Delivery:
    """One journal. Only who holds its lock may deliver it."""

    def __init__(self, state: Path, folder: Path) -> None:
        self._state, self.folder = state, folder
        self._entries: list[tuple[Entry, int]] = []
        self._read, self._seen = 0, set[str]()
        self._receipt = Receipt.of(folder)
        self._run: Run | None = None
        self._pipelines: dict[str, Run] = {}
        self.look()

    def look(self) -> None:
        """Take in what has been written since."""
        for entry, end in read(self.folder / JOURNAL, self._read):
            self._read = end
            if told(entry) not in self._seen:  # of two processes at the same work both may have told it
                self._seen.add(told(entry))
                self._entries.append((entry, end))
        if self._entries and self._receipt.journal != self._header["id"]:
            self._receipt = Receipt(journal=self._header["id"])

    @property
    def run_id(self) -> str:
        return self._receipt.run_id

    @property
    def pending(self) -> list[tuple[Entry, int]]:
        return [(entry, end) for entry, end in self._entries if end > self._receipt.offset]

    @property
    def ended(self) -> bool:
        """Whether the latest attempt has told how it ended."""
        begin = self._begin()
        return begin is not None and ended((entry for entry, _ in self._entries), begin["attempt"])

    def end_if_dead(self) -> None:
        """Tell in the place of a process that was killed."""
        begin = self._begin()
        if begin is None or self.ended or _alive(begin["process"]):
            return
        path = self.folder / JOURNAL
        if not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")  # behind the line it was writing
        now = time.time_ns() // 1_000_000
        append(path, {"kind": "end", "time": now, "attempt": begin["attempt"], **KILLED})
        self.look()

    def send(self, client: "MlflowClient") -> None:
        """Deliver what is pending."""
        if pending := self.pending:
            run = self._run = self._run or self._find_run(client)
            pending = self.pending  # it may have become more
            for group in _groups(pending):
                self._send_group(client, run, [entry for entry, _ in group])
                self._advance(group[-1][1])
                for entry, _ in group:
                    if entry["kind"] == "artifact":
                        shutil.rmtree((self.folder / entry["file"]).parent, ignore_errors=True)
        if self._receipt.offset != self._read or self._receipt.ended != self.ended or self._receipt.trouble:
            self._advance(self._read)  # past what was no entry, or was told twice
        if self.ended:
            shutil.rmtree(self.folder / "artifacts", ignore_errors=True)

    def explain(self, error: Exception) -> None:
        """Keep why nothing can be delivered."""
        if self._receipt.trouble != (trouble := reason(error)):
            self._receipt.trouble = trouble
            self._receipt.write(self.folder)

    def _advance(self, offset: int) -> None:
        self._receipt.offset, self._receipt.trouble = offset, ""
        self._receipt.ended = self.ended and offset == self._read
        self._receipt.write(self.folder)

    @property
    def _header(self) -> Entry:
        return self._entries[0][0]

    def _begin(self, attempt: int | None = None) -> Entry | None:
        """How an attempt began; without a number, the latest."""
        begins = [entry for entry, _ in self._entries if entry["kind"] == "begin"]
        if attempt is not None:
            begins = [begin for begin in begins if begin["attempt"] == attempt]
        return max(begins, key=lambda begin: begin["attempt"], default=None)

    def _is_latest(self, entry: Entry) -> bool:
        begin = self._begin()
        return begin is not None and begin["attempt"] == entry["attempt"]

    def _find_run(self, client: "MlflowClient") -> "Run":
        """The run that the receipt names; where that is not known, another, from the start of the journal."""
        header = self._header
        experiment_id = experiment(client, self._state, header["experiment"])
        server = identity(client, experiment_id)
        self._pipelines = {}
        if server == self._receipt.server and (run := _usable(client, self._receipt.run_id)):
            return run
        stage = header["stage"]
        tags = {"pspnet.kind": "stage", "pspnet.stage": stage, "mlflow.source.name": f"pspnet {stage}"}
        run = ensure_run(client, experiment_id, ("pspnet.journal", header["id"]), stage, tags, header["started"])
        self._receipt = Receipt(header["id"], server, run.info.run_id)
        return run

    def _send_group(self, client: "MlflowClient", run: "Run", group: list[Entry], alone: bool = False) -> None:
        """Once more, entry by entry, what the server refuses as a whole; what it then refuses is left out."""
        from mlflow.exceptions import MlflowException

        try:
            self._send_entries(client, run, group)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"):
                raise
            if _usable(client, run.info.run_id) is None:  # somebody has deleted it
                self._run, self._receipt.server = None, ""
                raise
            if alone:
                logger.warning("The server has refused %s: %s", group[0], error)
                return
            self._pipelines = {}  # a run of theirs may be the one that is gone
            for entry in group:
                self._send_group(client, run, [entry], alone=True)

    def _send_entries(self, client: "MlflowClient", run: "Run", group: list[Entry]) -> None:
        """A metric's entries come in groups, all others alone."""
        run_id = run.info.run_id
        first = group[0]
        match first["kind"]:
            case "epoch" | "figures":
                _log_metrics(client, run_id, [metric for entry in group for metric in _metrics(entry)])
            case "journal":
                add_params(client, run, first["params"])
            case "begin":
                self._send_begin(client, run_id, first)
            case "headline":
                self._send_headline(client, first)
            case "dataset":
                client.log_inputs(run_id, [_dataset(first)])
            case "artifact":
                self._send_artifact(client, run_id, first)
            case "end":
                self._send_end(client, run_id, first)

    def _send_begin(self, client: "MlflowClient", run_id: str, entry: Entry) -> None:
        from mlflow.entities import RunTag

        if not self._is_latest(entry):
            return
        tags = {**entry["tags"], "pspnet.attempts": str(entry["attempt"])}
        if pipeline := self._pipeline(client, _key(entry)):
            tags["mlflow.parentRunId"] = pipeline.info.run_id
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if not self.ended:
            client.update_run(run_id, "RUNNING")
            self._follow(client, _key(entry), "RUNNING", entry["time"])

    def _send_end(self, client: "MlflowClient", run_id: str, entry: Entry) -> None:
        if self._is_latest(entry):
            if entry["message"] or entry["attempt"] > 1:  # else there can be none to replace
                client.set_tag(run_id, "pspnet.message", entry["message"])
            client.set_terminated(run_id, entry["status"], entry["time"])
        if begin := self._begin(entry["attempt"]):
            self._follow(client, _key(begin), entry["status"], entry["time"])

    def _send_headline(self, client: "MlflowClient", entry: Entry) -> None:
        """To the pipeline's run, which another stage may have told the same."""
        if pipeline := self._pipeline(client, entry["pipeline"]):
            known = pipeline.data.metrics
            new = [metric for metric in _metrics(entry) if known.get(metric.key) != metric.value]
            _log_metrics(client, pipeline.info.run_id, new)

    def _send_artifact(self, client: "MlflowClient", run_id: str, entry: Entry) -> None:
        path = self.folder / entry["file"]
        if path.exists():
            folder = str(Path(entry["name"]).parent)
            client.log_artifact(run_id, str(path), None if folder == "." else folder)
        else:
            logger.info("Sent before, perhaps to another server: %s", entry["name"])

    def _follow(self, client: "MlflowClient", key: str | None, status: str, time_ms: int) -> None:
        """A pipeline's run is in the state of the stage that was at work last."""
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
            begin = next(entry for entry, _ in self._entries if entry["kind"] == "begin" and _key(entry) == key)
            params, tags = begin["pipeline"]["params"], begin["tags"]
            self._pipelines[key] = ensure_pipeline(client, experiment_id, key, params, tags, begin["started"])
        return self._pipelines[key]


def replay(state: Path, stop: Callable[[], bool] = lambda: False) -> list[str]:
    """Deliver what the journals still hold, until `stop`. Returns what could not be sent, and why.

    Quick where there is nothing to send.
    """
    deliveries = [delivery for folder in journals(state) if (delivery := unsent(state, folder))]
    if not deliveries:
        return []
    failures = []
    with impatience():
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
                continue  # its own sender is at it
            except Exception as error:
                delivery.explain(error)
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
    """The delivery of a journal that holds something to send."""
    receipt = Receipt.of(folder)
    if receipt.ended and receipt.offset == (folder / JOURNAL).stat().st_size:
        return None
    delivery = Delivery(state, folder)
    delivery.end_if_dead()
    return delivery if delivery.pending else None


def lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / "lock", timeout=0)


def prune(state: Path) -> None:
    """Forget the oldest of what has been delivered."""
    kept: Counter[str] = Counter()
    newest_first = sorted(journals(state), key=lambda folder: (folder / JOURNAL).stat().st_mtime, reverse=True)
    for folder in newest_first:
        if Receipt.of(folder).ended:
            stage = folder.name.rpartition("-")[0]
            kept[stage] += 1
            if kept[stage] > KEPT:
                shutil.rmtree(folder, ignore_errors=True)


def _groups(pending: list[tuple[Entry, int]]) -> Iterator[list[tuple[Entry, int]]]:
    group: list[tuple[Entry, int]] = []
    size = 0
    for entry, end in pending:
        metrics = len(entry["values"]) if entry["kind"] in ("epoch", "figures") else METRICS_AT_ONCE
        if group and size + metrics > METRICS_AT_ONCE:
            yield group
            group, size = [], 0
        group.append((entry, end))
        size += metrics
    if group:
        yield group


def _log_metrics(client: "MlflowClient", run_id: str, metrics: "list[Metric]") -> None:
    for start in range(0, len(metrics), METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_AT_ONCE])


def _metrics(entry: Entry) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(name, value, entry["time"], entry.get("step", 0)) for name, value in entry["values"].items()]


def _dataset(entry: Entry) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=f"{Path(entry['source']).name}/{entry['split']}",
        digest=entry["digest"][:LONGEST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": entry["source"]}),
        profile=json.dumps({"images": entry["images"]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry["split"])])


def _key(begin: Entry) -> str | None:
    """Of the pipeline that an attempt was part of."""
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
    """As far as can be known: of another machine's processes nothing is."""
    if process["host"] != platform.node():
        return True
    return is_alive(process["pid"], process["created"])
