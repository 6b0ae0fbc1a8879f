"""`pspnet deploy` and `pspnet worker`: the same flows on a server's machines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import yaml
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from flows import server
from flows.automations import install
from flows.local import refuse_dirty
from pspnet import terminal
from pspnet.errors import Problem, UserError
from pspnet.worktree import git, last

PREFECT = Path("prefect.yaml")


def deploy() -> None:
    """Pools, deployments and automations: made where they are missing, brought up to date where they are not."""
    url = server.named()
    checkout = Path.cwd()
    refuse_dirty(checkout, "Workers run a commit.")
    commit = _known_to_others(checkout)
    content = yaml.safe_load(PREFECT.read_text(encoding="utf-8"))
    names = [f"{_flow(one['entrypoint'])}/{one['name']}" for one in content["deployments"]]
    pools = sorted({one["work_pool"]["name"] for one in content["deployments"]})
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
            raise UserError(Problem(str(PREFECT), last(done), fix=f"{done.stdout.strip()}\n{done.stderr.strip()}"))
        found = [f"prefect.deployment.{client.read_deployment_by_name(name).id}" for name in names]
        install(client, found, afresh=False)
    terminal.out.print(f"{url}: {', '.join(names)} run commit {commit[:12]}", markup=False)
    workers = " and ".join(f"`pspnet worker {pool}`" for pool in pools)
    terminal.out.print(f"On the machines, in a clone each: {workers}. Now: prefect deployment run retrain/retrain")


def worker(pool: str, limit: int, name: str | None) -> NoReturn:
    """Our process becomes Prefect's worker; what it starts finds this clone's commands."""
    server.named()
    words = ["worker", "start", "--pool", pool, "--type", "process", "--limit", str(limit)]
    words += ["--name", name] if name else []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execve(sys.executable, [sys.executable, "-m", "prefect", *words], os.environ | {"PATH": path})  # noqa: S606


def _flow(entrypoint: str) -> str:
    return entrypoint.rpartition(":")[2]


def _known_to_others(checkout: Path) -> str:
    """The commit, if the workers' clones can fetch it."""
    commit = git(checkout, "rev-parse", "HEAD").stdout.strip()
    remotes = git(checkout, "remote").stdout.split()
    if remotes and not git(checkout, "branch", "--remotes", "--contains", commit).stdout.strip():
        problem = f"the commit {commit[:12]} is in no branch of {', '.join(remotes)}"
        raise UserError(Problem("git", problem, fix="`git push` it: the workers fetch it from there."))
    return commit
