"""Records system metrics while a stage runs, using MLflow's own monitors."""

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from pspnet.tracking.delivery import METRICS_AT_ONCE, logger

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PREFIX = "system/"
SECONDS = 10.0
WAITING = 1000  # number of samples to keep while the server is down; older samples are lost


class SystemMetrics:
    def __init__(self) -> None:
        self._seconds = _seconds_between()
        self._monitors = list(_monitors())
        self._waiting: deque[tuple[int, dict[str, float]]] = deque(maxlen=WAITING)
        self._run_id, self._step = "", 0
        self._measure()  # needed because CPU usage is measured since the previous call
        self._last, self._any = time.monotonic(), False

    def sample(self, at_least_one: bool) -> None:
        """Take a sample if one is due, or if there is none yet and `at_least_one` is set."""
        now = time.monotonic()
        if now - self._last < self._seconds and (self._any or not at_least_one):
            return
        self._last, self._any = now, True
        if values := self._measure():
            self._waiting.append((time.time_ns() // 1_000_000, values))

    def send(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Metric

        if not self._waiting:
            return
        if run_id != self._run_id:
            self._step, self._run_id = _next_step(client, run_id), run_id
        while self._waiting:  # samples are dropped only after sending; one sent twice is still one row
            time_ms, values = self._waiting[0]
            metrics = [Metric(f"{PREFIX}{name}", value, time_ms, self._step) for name, value in values.items()]
            client.log_batch(run_id, metrics=metrics[:METRICS_AT_ONCE])
            self._step += 1
            self._waiting.popleft()

    def _measure(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            try:
                monitor.clear_metrics()
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
            except Exception as error:
                logger.info("%s: %s", type(monitor).__name__, error)
        return values


def _seconds_between() -> float:
    try:
        return float(os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"])
    except (KeyError, ValueError):
        return SECONDS


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found = []
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]  # the monitors have no type hints
    for kind in kinds:
        try:
            found.append(kind())
        except Exception as error:  # no GPU, no network
            logger.info("%s: %s", kind.__name__, error)
    return found


def _next_step(client: "MlflowClient", run_id: str) -> int:
    """The step to continue from: one more than the last step logged by an earlier attempt, or 0."""
    history = [metric.step for metric in client.get_run(run_id).data._metric_objs if metric.key.startswith(PREFIX)]
    return max(history, default=-1) + 1
