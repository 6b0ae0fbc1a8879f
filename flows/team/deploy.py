"""`pspnet deploy` and `pspnet worker`: run the flows with a Prefect server and workers on several machines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import yaml
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from flows.laptop import server
from flows.laptop.retrain_command import refuse_dirty
from flows.team.lost_runs import install
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.worktree import git, last_error_line

PREFECT = Path("prefect.yaml")


def deploy() -> None:
    """Create or update pools, deployments and automations."""
    url = server.configured_url()
    checkout = Path.cwd()
    refuse_dirty(checkout, "Workers run a commit, without these changes.")
    commit = _known_to_others(checkout)
    content = yaml.safe_load(PREFECT.read_text(encoding="utf-8"))
    deployments = content["deployments"]
    names = [f"{_flow(deployment['entrypoint'])}/{deployment['name']}" for deployment in deployments]
    pools = sorted({deployment["work_pool"]["name"] for deployment in deployments})
    with get_client(sync_client=True) as client:
        for pool in pools:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT)]
        environment = os.environ | {"PSPNET_COMMIT": commit, "COLUMNS": "200"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            output = f"{done.stdout.strip()}\n{done.stderr.strip()}"
            raise UserError(Problem(str(PREFECT), last_error_line(done), fix=output))
        found = [f"prefect.deployment.{client.read_deployment_by_name(name).id}" for name in names]
        install(client, found, afresh=False)
    terminal.out.print(f"{url}: {', '.join(names)} run commit {commit[:12]}", markup=False)
    workers = " and ".join(f"`pspnet worker {pool}`" for pool in pools)
    terminal.out.print(f"On each machine, in a clone, run {workers}. To start: prefect deployment run retrain/retrain")


def worker(pool: str, limit: int, name: str | None) -> NoReturn:
    """Replace this process with Prefect's worker. This clone's commands come first in its PATH."""
    server.configured_url()
    words = ["worker", "start", "--pool", pool, "--type", "process", "--limit", str(limit)]
    words += ["--name", name] if name else []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execve(sys.executable, [sys.executable, "-m", "prefect", *words], os.environ | {"PATH": path})  # noqa: S606


def _flow(entrypoint: str) -> str:
    return entrypoint.rpartition(":")[2]


def _known_to_others(checkout: Path) -> str:
    """The commit that is checked out. Raises UserError if the workers' clones would not be able to fetch it."""
    commit = git(checkout, "rev-parse", "HEAD").stdout.strip()
    remotes = git(checkout, "remote").stdout.split()
    if remotes and not git(checkout, "branch", "--remotes", "--contains", commit).stdout.strip():
        problem = f"commit {commit[:12]} is not on any branch of {', '.join(remotes)}"
        raise UserError(Problem("git", problem, fix="Run `git push`: the workers fetch the commit from there."))
    return commit
