"""The stages in dvc.yaml and the data they start from. The flows have no other DAG."""

import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.workplace import PARAMS
from pspnet.config.reading import read_yaml
from pspnet.errors import Problem, UserError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Source:
    """Data that is not the output of a stage, tracked by `dvc add` or `dvc import`."""

    name: str
    is_import: bool = False

    @property
    def file(self) -> str:
        return f"{self.name}.dvc"


@dataclass(frozen=True)
class Stage:
    name: str
    pool: str | None
    timeout_seconds: float | None
    retries: int
    upstream: tuple[str, ...]  # the stages and sources it depends on
    command: str = ""
    parts: int = 1  # number of parts that the pool's machines create first


@dataclass(frozen=True)
class Dag:
    sources: tuple[Source, ...]
    stages: tuple[Stage, ...]  # sorted topologically
    has_remote: bool

    def named(self, name: str) -> Stage:
        stages = {stage.name: stage for stage in self.stages}
        if name not in stages:
            raise UserError(Problem("stage", f"there is no '{name}'", f"one of {', '.join(stages)}"))
        return stages[name]

    def sources_of(self, stage: Stage) -> list[Source]:
        return [source for source in self.sources if source.name in stage.upstream]


def read_dag(project: Path) -> Dag:
    with open_repo(project) as repo:
        return dag_of(repo, project)


def dag_of(repo: Repo, project: Path) -> Dag:
    graph = repo.index.graph  # edges point from a stage to its dependencies
    order = list(repo.index.stages)
    nodes = list(networkx.lexicographical_topological_sort(graph.reverse(), key=order.index))
    names = {node: _name(node, project) for node in nodes}
    has_remote = bool(repo.config["core"].get("remote"))
    sources = {names[node]: Source(names[node], node.is_import) for node in nodes if not node.cmd}
    raw = _raw([node for node in nodes if node.cmd], repo, project)
    stages, problems = [], []
    for node in (node for node in nodes if node.cmd):
        sources |= {name: Source(name) for name in raw[node]}
        try:
            upstream = sorted({names[other] for other in graph.successors(node)} | set(raw[node]))
            stages.append(_stage(names[node], node, tuple(upstream), project))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return Dag(tuple(sources.values()), tuple(stages), has_remote)


def changed_stages(project: Path) -> set[str]:
    """The names of the stages that, according to DVC, may be out of date."""
    with open_repo(project) as repo:
        return set(repo.status())


@contextmanager
def open_repo(project: Path) -> Iterator[Repo]:
    """DVC's repository object. Turns DVC errors inside the block into UserErrors."""
    try:
        with Repo(str(project), _wait_for_lock=True) as repo:
            yield repo
    except DvcException as error:
        found = " ".join(str(error).split()).rstrip(".")
        raise UserError(Problem("DVC", found, fix=f"For details, run `dvc status` in {project}.")) from None


def _name(node: Any, project: Path) -> str:
    if node.cmd:
        return str(node.addressing)
    return Path(node.outs[0].fs_path).relative_to(project.resolve()).as_posix()


def _raw(nodes: Iterable[Any], repo: Any, project: Path) -> dict[Any, list[str]]:
    """The dependencies that git ignores and that no stage creates. DVC must track them."""
    made, root = {Path(out.fs_path) for out in repo.index.outs}, project.resolve()
    paths = {node: [Path(str(one.fs_path)) for one in node.deps if one.protocol == "local"] for node in nodes}
    names = {
        path: path.relative_to(root).as_posix()
        for path in {path for found in paths.values() for path in found}
        if path.is_relative_to(root) and not made.intersection([path, *path.parents])
    }
    # Each path is also checked with a trailing slash: it may not exist yet, and a pattern may match only folders.
    asked = "\n".join(line for name in names.values() for line in (name, f"{name}/"))
    command = ["git", "check-ignore", "--stdin"]
    done = subprocess.run(command, cwd=project, input=asked, capture_output=True, text=True, check=False)
    ignored = {line.rstrip("/") for line in done.stdout.splitlines()}
    return {node: [names[path] for path in found if names.get(path) in ignored] for node, found in paths.items()}


def _stage(name: str, node: Any, upstream: tuple[str, ...], project: Path) -> Stage:
    """A stage with its settings from `meta: {pool: gpu, timeout: 6h, retries: 2, parts: prepare.parts}`.

    Every key of `meta` is optional.
    """
    meta, where = node.meta or {}, f"dvc.yaml: stages.{node.addressing}.meta"
    unknown = sorted(meta.keys() - {"pool", "timeout", "retries", "parts"})
    problems = [Problem(where, f"has an unknown key '{key}'", "pool, timeout, retries, parts") for key in unknown]
    timeout = re.fullmatch(r"(\d+)([smhd])", str(meta.get("timeout", "0s")))
    if timeout is None:
        problems.append(
            Problem(f"{where}.timeout", f"is '{meta['timeout']}'", "a number with s, m, h or d, such as 6h")
        )
    retries = meta.get("retries", 0)
    if not isinstance(retries, int) or retries < 0:
        problems.append(Problem(f"{where}.retries", f"is '{retries}'", "a whole number, 0 or more"))
    parts = _param(project, str(meta["parts"])) if "parts" in meta else 1
    if not isinstance(parts, int) or parts < 1:
        expected = f"the name of a whole number in {PARAMS}, 1 or more"
        found = "no parameter" if parts is None else str(parts)
        problems.append(Problem(f"{where}.parts", f"is '{meta['parts']}', which is {found}", expected))
    if "parts" in meta and not isinstance(node.cmd, str):
        problems.append(Problem(f"{where}.parts", "is for one command", f"one in stages.{node.addressing}.cmd"))
    if problems or timeout is None:
        raise UserError(problems)
    seconds = float(timeout[1]) * UNITS[timeout[2]]
    return Stage(name, meta.get("pool"), seconds or None, retries, upstream, str(node.cmd), parts)


def _param(project: Path, name: str) -> Any:
    """The value of a parameter in params.yaml, or None if there is no such parameter."""
    path = project / PARAMS
    found: Any = read_yaml(path) if path.exists() else None
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found
