"""A team on one machine: servers, and workers in clones that share only git, a DVC remote and the servers."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.command import marked
from flows.laptop import server
from tests.command import pspnet
from tests.e2e.pipeline import BIN, checkout, clone, digests, run, warmed, write_params
from tests.network import free_port
from tests.registry.databases import postgresql
from tests.tracking.server import Server, answers
from tests.waiting import wait_until

STARTS_SECONDS = 240
SOON_SECONDS = 180  # limit for things that normally take a moment, on a slow and busy machine
DUE_SECONDS = 8  # from a schedule to its first run; the server looks for new schedules every two seconds
RETRAIN = "retrain/retrain"
POOLS = ("cpu", "gpu")
TEAM = "PSPNET_TEST_TEAM"  # environment variable set in every process of the team
HURRIED = {  # short waits; Prefect allows no heartbeat interval shorter than 30 s
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PSPNET_LOST_SECONDS": "45",
    "PSPNET_CHECKPOINT_SECONDS": "0.2",
}
T = TypeVar("T")


class Team:
    def __init__(self, folder: Path, warm: str, **params: Any) -> None:
        """`warm` is a Python with Prefect loaded, for a person's commands and for undisturbed runs."""
        self.folder, self.warm = folder, warm
        self.person, self.cpu, self.gpu = folder / "person", folder / "cpu", folder / "gpu"
        self.mlflow = Server(folder / "mlflow")
        self.client: SyncPrefectClient
        self._port = free_port()
        self._password = server.new_password()
        self.workers: dict[str, psutil.Popen] = {}
        self._processes: list[psutil.Popen] = []
        self._params = params
        self._open = ExitStack()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    def environment(self, clone: Path) -> dict[str, str]:
        home = self.folder / "homes" / clone.name
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return kept | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(clone),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_AUTH_STRING": self._password,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_TRACKING_URI": self.mlflow.uri,
            "PSPNET_LOADER_WORKERS": "1",
            TEAM: str(self.folder),
            **HURRIED,
        }

    def start(self) -> None:
        """Start the servers, a person's checkout with new data, and a worker for each pool."""
        address = self._open.enter_context(postgresql("prefect", "asyncpg"))
        self._start(
            "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self._port),
            cwd=self.folder, PREFECT_API_DATABASE_CONNECTION_URL=address, PREFECT_SERVER_API_AUTH_STRING=self._password,
        )  # fmt: skip
        with ThreadPoolExecutor(1) as beside:  # starting a server takes seconds
            mlflow = beside.submit(self.mlflow.start)
            self._publish()
            origin = str(self.folder / "origin.git")
            for pool in POOLS:
                run(self.folder, "git", "clone", "--quiet", "--branch", "main", origin, str(self.folder / pool))
            pspnet("synthesize", "data/raw", "--images", "60", "--labeled", "40", cwd=self.cpu)
            mlflow.result()
        self.until(lambda: answers(f"{self.api}/health"), STARTS_SECONDS, "the Prefect server does not start")
        with temporary_settings({PREFECT_API_URL: self.api, PREFECT_API_AUTH_STRING: self._password}):
            self.client = self._open.enter_context(get_client(sync_client=True))
        self.deploy()
        for pool in POOLS:
            self.start_worker(pool)

    def _publish(self) -> None:
        checkout(self.person, **self._params)
        git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")
        run(self.folder, "git", "init", "--quiet", "--bare", "origin.git")
        self.call(self.person, "dvc", "remote", "modify", "folder", "url", str(self.folder / "remote"))
        run(self.person, *git, "commit", "-qam", "The team's settings")
        run(self.person, "git", "remote", "add", "origin", str(self.folder / "origin.git"))
        run(self.person, "git", "push", "--quiet", "origin", "HEAD:main")

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(5)
        while left := marked(TEAM, str(self.folder)):
            for one in left:
                one.kill()
            psutil.wait_procs(left, 5)
        self.mlflow.stop()
        self._open.close()

    def start_worker(self, pool: str) -> None:
        limit = {"cpu": "4", "gpu": "1"}[pool]
        self.workers[pool] = self._start("pspnet", "worker", pool, "--limit", limit, cwd=self.folder / pool)

    def call(self, folder: Path, *command: str, timeout: float = 300) -> str:
        environment = self.environment(folder)
        environment["PATH"] = os.pathsep.join([str(Path(self.warm).parent), environment["PATH"]])
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def _start(self, *command: str, cwd: Path, **more: str) -> psutil.Popen:
        with (self.folder / f"{cwd.name}-{command[0]}.log").open("ab") as log:
            process = psutil.Popen(
                command, cwd=cwd, env=self.environment(cwd) | more, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def until(self, met: Callable[[], T], seconds: float, otherwise: str | Callable[[], str]) -> T:
        return wait_until(met, seconds, otherwise, pause=0.2)  # a check may scan all processes or ask a server

    # What a person does through the server

    def deploy(self) -> None:
        """Deploy, check the schedules from prefect.yaml, and remove them, because the tests decide
        when a run is due.
        """
        self.call(self.person, "pspnet", "deploy")
        for name, when in ((RETRAIN, {"cron": "0 3 * * 0"}), ("watch/watch", {"interval": timedelta(minutes=5)})):
            (deployed,) = self.unschedule(name)
            assert when.items() <= deployed.items()

    @contextmanager
    def undisturbed(self, *names: str) -> Iterator[None]:
        """Within the block, runs of these deployments (by default, all) and the commands of these runs start warm.

        The flows are loaded from the worker's clone instead of the worktree.
        """
        deployments = [self.client.read_deployment_by_name(name) for name in names] or self.client.read_deployments()
        for one in deployments:
            command = {"command": f"{self.warm} -m prefect.engine"}
            self.client.update_deployment(one.id, DeploymentUpdate(job_variables=one.job_variables | command))
        try:
            yield
        finally:
            for one in deployments:
                self.client.update_deployment(one.id, DeploymentUpdate(job_variables=one.job_variables))

    def schedule(self, name: str = RETRAIN) -> None:
        """Schedule the deployment to run shortly and then every minute."""
        due = datetime.now(UTC) + timedelta(seconds=DUE_SECONDS)
        found = self.client.read_deployment_by_name(name)
        every_minute = IntervalSchedule(interval=timedelta(minutes=1), anchor_date=due)
        self.client.create_deployment_schedules(found.id, [DeploymentScheduleCreate(schedule=every_minute)])

    def unschedule(self, name: str = RETRAIN) -> list[dict[str, Any]]:
        """Remove the deployment's schedules. Returns the schedules."""
        found = self.client.read_deployment_by_name(name)
        for one in found.schedules:
            self.client.delete_deployment_schedule(found.id, one.id)
        return [one.schedule.model_dump() for one in found.schedules]

    def ask_for(self, deployment: str, **parameters: Any) -> FlowRun:
        found = self.client.read_deployment_by_name(deployment)
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters)

    def retrain(self, **overrides: Any) -> FlowRun:
        return self.ask_for(RETRAIN, overrides={name.replace("__", "."): value for name, value in overrides.items()})

    # What a person sees on the server

    def retrainings(self) -> list[FlowRun]:
        """Return all retraining runs that have started or are due, ordered by time."""
        deployment = self.client.read_deployment_by_name(RETRAIN)
        return self.client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            flow_run_filter=FlowRunFilter(
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC))  # type: ignore[arg-type]
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        )

    def finished(self, run: FlowRun, seconds: float = 600) -> FlowRun:
        """Wait for the run's final state. A crashed run is scheduled again, so it is not final."""

        def over() -> FlowRun | None:
            now = self.client.read_flow_run(run.id)
            return now if now.state and now.state.is_final() and not now.state.is_crashed() else None

        found = self.until(over, seconds, lambda: f"{run.name} is still running:\n{self.log(run)}")
        assert found
        return found

    def completed(self, run: FlowRun, seconds: float = 600) -> FlowRun:
        run = self.finished(run, seconds)
        assert run.state and run.state.is_completed(), f"{run.name} is {run.state}:\n{self.log(run)}"
        return run

    def log(self, run: FlowRun) -> str:
        """Return the log of the run and of the runs that it waited for."""
        ids = [run.id, *(child.id for child in self.children(run))]
        logs = self.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=ids)), limit=200)
        return "\n".join(entry.message for entry in sorted(logs, key=lambda entry: entry.timestamp))

    def children(self, run: FlowRun) -> list[FlowRun]:
        """Return the runs in another pool that compute this run's stages."""
        parents = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]))
        tasks = {task.id for task in self.client.read_task_runs(task_run_filter=parents)}
        runs = self.client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["stage"])))
        return [one for one in runs if one.parent_task_run_id in tasks]

    # What runs on the machines

    def processes(self, *pools: str) -> list[psutil.Process]:
        """Return all processes that work in a worktree of a clone."""
        folders = [self.folder / pool / ".pspnet/runs" for pool in pools or POOLS]
        return [one for one in marked(TEAM, str(self.folder)) if any(works_in(one, folder) for folder in folders)]

    def engine(self, pool: str) -> psutil.Process:
        """Return Prefect's process for the run that works in this clone."""
        (found,) = [one for one in self.processes(pool) if any(word.startswith("prefect.") for word in command(one))]
        return found

    def training(self, seconds: float = 400) -> psutil.Process:
        """Return the training process, suspended once it has saved a checkpoint, so that disturbances hit it midway."""

        def begun() -> list[psutil.Process]:
            return [one for one in self.processes("gpu") if {"finetune", "--history"} <= set(command(one))]

        training = min(self.until(begun, seconds, "no training run has started"), key=lambda one: one.create_time())
        wait_until(lambda: self.saved_at() > training.create_time(), seconds, "training saved no checkpoint")
        training.suspend()
        assert training.is_running() and training.status() != psutil.STATUS_ZOMBIE, "training finished too soon"
        return training

    def saved_at(self) -> float:
        """Return the time of the latest checkpoint of any training run."""
        latest = 0.0
        for path in (self.gpu / ".pspnet/checkpoints").glob("finetune-*/state.safetensors"):
            with suppress(FileNotFoundError):  # old checkpoints are removed
                latest = max(latest, path.stat().st_mtime)
        return latest


class Plain:
    """A clone that shares nothing with the team. There, plain DVC computes the results that the team should also
    compute.
    """

    def __init__(self, team: Team, folder: Path) -> None:
        self._team = team
        self.folder = clone(team.person, folder / "clone")
        self._warm = warmed(Path(team.warm).parent)
        run(self.folder, "dvc", "remote", "modify", "folder", "url", str(folder / "nowhere"), **self._warm)

    def made(self, *targets: str, **params: Any) -> dict[str, str]:
        """Run DVC on the current raw data of the team. Returns the digests of all results."""
        raw = self.folder / "data/raw"
        shutil.rmtree(raw, ignore_errors=True)
        shutil.copytree(self._team.cpu / "data/raw", raw)
        run(self.folder, "git", "checkout", "--quiet", "params.yaml")
        write_params(self.folder, **params)
        run(self.folder, "dvc", "add", "--quiet", "data/raw", **self._warm)
        run(self.folder, "dvc", "repro", *targets, **self._warm)
        return digests(self.folder)


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return False


def kill(*processes: psutil.Process) -> None:
    """Kill all processes as close to simultaneously as possible, so that none can react to the death of another."""
    for one in processes:
        one.send_signal(signal.SIGSTOP)
    for one in processes:
        one.kill()
