"""`pspnet reproduce`: rebuilds a version in a worktree from the files it includes, and compares the results."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import differences
from pspnet.config.reading import read_yaml
from pspnet.errors import Interrupted, Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.process import exclusive
from pspnet.machine.worktree import discard, git
from pspnet.model.backbone.digest import digest
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.past_checkout import HERE, dvc, lay_out, stoppable
from pspnet.registry.provenance import DVC, LOCK, RUNS, accepted, data_files, other_packages
from pspnet.registry.versions import Version, part

Facts = dict[str, Any]
Stages = dict[str, Any]  # the stages in a dvc.lock
SHORT = 12  # characters of a digest to show
SHOWN = 10  # maximum number of packages to show


@dataclass(frozen=True)
class Result:
    name: str
    stage: str
    expected: str  # digest of the version's own result
    found: str  # digest; empty if there is no such result

    @property
    def equal(self) -> bool:
        return self.expected == self.found


def reproduce(registry: ModelRegistry, which: str, run_again: bool, keep: bool) -> None:
    started = time.monotonic()
    version = registry.versions.get(which)
    name = f"{registry.versions.model} version {version.number}"
    kept, bundle = (part(registry.folder(version), name) for name in ("provenance", "bundle"))
    commit = _commit(name, version, kept, bundle)
    if others := _others(kept):
        terminal.err.print(f"Packages that differ from the version's: {others}", style="yellow", markup=False)
    tree = (registry.state / "reproduce" / f"v{version.number}").resolve()
    with exclusive(tree.with_name(f"{tree.name}.lock"), f"the worktree of version {version.number}"):
        terminal.err.print(f"{name}: rebuilding it in {tree}", markup=False)
        try:
            with stoppable():
                project = lay_out(tree, commit, kept)
                _make(project, kept, run_again)
        except Interrupted:
            discard(HERE, tree)
            raise
        then, now = read_yaml(kept / LOCK)["stages"], read_yaml(project / LOCK)["stages"]
        results = [*_bundle(project, then, bundle, version.bundle), *_data(project, kept), *_outs(then, now)]
        terminal.out.print(_table(results))
        ran = {stage: path for stage, path in _run_records(then).items() if _is_other(then, now, stage, path)}
        if not all(result.equal for result in results):
            text = f"{name} was rebuilt and came out different: {_why(results, then, now, kept, project, ran)}"
            raise UserError([], f"{text}\nThe new results are in {project}.")
        if keep:
            terminal.err.print(f"Kept: {project}", markup=False)
        else:
            discard(HERE, tree)
    if changed := "; ".join(_changed_inputs(then, now)):
        note = f"But its {LOCK} lists other inputs ({changed}): a change before its registration made no difference."
        terminal.err.print(note, style="yellow", markup=False)
    how = f"{_and(list(ran))} ran here" if ran else "from DVC's cache: --run-again runs every stage"
    text = f"{name} was rebuilt ({how}), and all {len(results)} results are identical."
    terminal.out.print(f"{text} {time.monotonic() - started:.0f} s.", style="green", markup=False)


def _commit(name: str, version: Version, kept: Path, bundle: Path) -> str:
    """Return the version's commit, after checking everything that can be checked in advance."""
    problems = []
    if (found := digest(bundle)) != version.bundle:
        problem = f"contains the bundle {found[:SHORT]}, but is registered with {version.bundle[:SHORT]}"
        problems.append(Problem(name, problem, "the same bundle", f"Find out who changed {version.source}."))
    expected = "a version whose bundle was created by the pipeline"
    problems += [Problem(name, f"has no {file}", expected) for file in (DVC, LOCK) if not (kept / file).exists()]
    if not (commit := version.tags.get("git.commit", "")):
        expected = "a version registered in a git checkout"
        problems.append(Problem(name, "has no git commit", expected, "It cannot be traced."))
    elif git(HERE, "rev-parse", "--git-dir").returncode:
        problems.append(Problem(str(Path.cwd()), "is not a git checkout", f"a clone with the commit {commit[:SHORT]}"))
    elif git(HERE, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        problem = f"was created at the commit {commit[:SHORT]}, which this clone lacks"
        problems.append(Problem(name, problem, fix="`git fetch --all` gets it if it was pushed."))
    if problems:
        raise UserError(problems)
    return commit


def _make(project: Path, kept: Path, run_again: bool) -> None:
    """Run the pipeline with --no-commit. Otherwise DVC would later reuse the results of these untracked runs."""
    data = [str(path) for path in data_files(kept)]
    missing = list(_not_on_record(project, kept))
    if missing:
        raise UserError(missing)
    whole = dvc(project, "checkout", *(data if run_again else []), quiet=True) == 0
    if not whole and data and dvc(project, "checkout", *data, quiet=True) and dvc(project, "pull", *data):
        problem = "is neither in this checkout's DVC cache nor in its remote"
        fix = "DVC lists the missing files above. Run `dvc push` where the version was created."
        raise UserError([Problem(path.removesuffix(".dvc"), problem, fix=fix) for path in data])
    options = ["--force"] if run_again else [] if whole else ["--pull"]
    if dvc(project, "repro", "--no-commit", *options):
        problem = "the pipeline failed here; see the messages of DVC and the stage above"
        raise UserError(Problem(str(project), problem, fix="The worktree is kept."))


def _not_on_record(project: Path, kept: Path) -> Iterator[Problem]:
    stages = read_yaml(project / DVC)["stages"]
    locked = read_yaml(kept / LOCK)["stages"]
    known = {Path(name) for facts in locked.values() for name in _digests(facts)}
    known |= {path.with_suffix("") for path in data_files(kept)}
    for name, facts in locked.items():
        if "wdir" in stages.get(name, {}):  # the stage's paths are relative to that folder
            continue
        for path in map(Path, _digests(facts, "deps")):
            inside = not path.is_absolute() and ":" not in path.parts[0]  # not s3://
            if inside and not known.intersection([path, *path.parents]) and not (project / path).exists():
                problem = f"depends on {path}, which is neither in git nor under DVC"
                yield Problem(
                    name, problem, fix="Before registering a version, `dvc add` its data and commit its code."
                )


def _bundle(project: Path, then: Stages, bundle: Path, expected: str) -> Iterator[Result]:
    """Compare the bundle with the stage output that contained the same files."""
    files = {path.name for path in bundle.iterdir()}
    for stage, facts in then.items():
        for name in _digests(facts):
            folder = project / name
            if folder.is_dir() and {path.name for path in folder.iterdir()} == files:
                yield Result(f"the bundle in {name}", stage, expected, digest(folder))
                return
    yield Result("the bundle", "", expected, "")


def _data(project: Path, kept: Path) -> Iterator[Result]:
    for path in data_files(kept):
        found = _digests(read_yaml(project / path))
        for name, expected in _digests(read_yaml(kept / path)).items():
            yield Result((path.parent / name).as_posix(), "", expected, found.get(name, ""))


def _outs(then: Stages, now: Stages) -> Iterator[Result]:
    """Compare all outputs except the run records, which differ in every run."""
    records = _run_records(then)
    for stage, facts in then.items():
        found = _digests(now.get(stage, {}))
        for name, expected in _digests(facts).items():
            if name != records.get(stage):
                yield Result(name, stage, expected, found.get(name, ""))


def _digests(facts: Facts, kind: str = "outs") -> dict[str, str]:
    return {str(item["path"]): str(item.get("md5", "")) for item in facts.get(kind, [])}


def _run_records(stages: Stages) -> dict[str, str]:
    found = {}
    for stage, facts in stages.items():
        commands = [facts["cmd"]] if isinstance(facts["cmd"], str) else facts["cmd"]
        words = [word for command in commands for word in shlex.split(command)]
        if "--run-record" in words[:-1]:
            found[stage] = words[words.index("--run-record") + 1]
    return found


def _is_other(then: Stages, now: Stages, stage: str, path: str) -> bool:
    return _digests(then[stage]).get(path) != _digests(now.get(stage, {})).get(path)


def _table(results: Sequence[Result]) -> Table:
    table = Table("result", "stage", "version's", "here", "", show_edge=False, pad_edge=False)
    for result in results:
        mark = "[green]equal[/]" if result.equal else "[red]differs[/]"
        found = result.found[:SHORT] or "absent"
        table.add_row(escape(result.name), escape(result.stage), result.expected[:SHORT], found, mark)
    return table


def _why(
    results: Sequence[Result], then: Stages, now: Stages, kept: Path, project: Path, ran: Mapping[str, str]
) -> str:
    if changed := list(_changed_inputs(then, now)):
        text = "the version does not include the inputs of its results. It was registered after a change that"
        return f"{text} `dvc repro` had not seen: {'; '.join(changed)}."
    different = {result.name for result in results if not result.equal}
    stages = [
        stage
        for stage, facts in then.items()
        if different.intersection(_digests(facts)) and not different.intersection(_digests(facts, "deps"))
    ]
    if not stages:
        return "its results match dvc.lock, but the bundle is not among them. The bundle came from elsewhere."
    causes = [f"other packages ({others})"] if (others := _others(kept)) else []
    causes += list(_other_machines([stage for stage in stages if stage in ran], kept, project, ran))
    causes += [f"code that {one['who']} accepted for {one['stage']} ({one['why']})" for one in accepted(kept, then)]
    because = f"What differs here: {_and(causes)}." if causes else "The packages and the machine match those on record."
    return f"{_and(stages)} produced different results from the same code, params and data. {because}"


def _changed_inputs(then: Stages, now: Stages) -> Iterator[str]:
    made = {name for facts in then.values() for name in _digests(facts)}
    for stage, facts in then.items():
        if stage not in now:
            yield f"{stage} is gone from {DVC}"
            continue
        changed = ["its command"] if facts["cmd"] != now[stage]["cmd"] else []
        changed += differences(_params(facts), _params(now[stage]))
        before, after = _digests(facts, "deps"), _digests(now[stage], "deps")
        changed += [name for name in {**before, **after} if name not in made and before.get(name) != after.get(name)]
        if changed:
            yield f"{stage}: {', '.join(changed)}"


def _params(facts: Facts) -> Facts:
    """Return the stage's params, merged from all params files."""
    return {section: values for file in facts.get("params", {}).values() for section, values in file.items()}


def _other_machines(stages: Sequence[str], kept: Path, project: Path, ran: Mapping[str, str]) -> Iterator[str]:
    for stage in stages:
        if (kept / RUNS / f"{stage}.json").exists():
            paths = (kept / RUNS / f"{stage}.json", project / ran[stage])
            before, here = (json.loads(path.read_text(encoding="utf-8"))["machine"] for path in paths)
            parts = [part for part in ("system", "gpu", "cpus") if before.get(part) != here.get(part)]
            if parts:
                names = ", ".join(f"{part} {before.get(part, 'none')} -> {here.get(part, 'none')}" for part in parts)
                yield f"another machine for {stage} ({names})"


def _others(kept: Path) -> str:
    others = other_packages(kept)
    more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return ", ".join(map(str, others[:SHOWN])) + more


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
