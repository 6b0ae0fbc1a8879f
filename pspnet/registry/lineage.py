"""`pspnet lineage`: shows where a version comes from, from the raw data to the moves of the champion."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from pspnet.config.params import differences
from pspnet.config.reading import read_yaml
from pspnet.machine import terminal
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.provenance import (
    LOCK,
    MAIN_PACKAGES,
    PARAMS,
    RUNS,
    accepted,
    changes,
    data_files,
    other_packages,
    packages,
    run_page,
)
from pspnet.registry.versions import Version, part

Facts = dict[str, Any]
SHORT = 12  # characters of a digest to show
SHOWN = 12  # maximum number of lines in a branch; --json shows all of them
RUN, ELSEWHERE = "run.", ".elsewhere"


def lineage(registry: ModelRegistry, which: str, as_json: bool) -> None:
    registry.audit.settle()
    version = registry.versions.get(which)
    facts = _facts(registry, version, registry.folder(version))
    if as_json:
        text = json.dumps(facts, indent=2, ensure_ascii=False, default=str)
        terminal.out.print(text, markup=False, emoji=False)
    else:
        terminal.out.print(_tree(facts), soft_wrap=False)


def _facts(registry: ModelRegistry, version: Version, folder: Path) -> Facts:
    """Return the whole lineage as values that can be written as JSON."""
    kept = part(folder, "provenance")
    params = read_yaml(kept / PARAMS)
    stages: Facts = read_yaml(kept / LOCK)["stages"] if (kept / LOCK).exists() else {}
    return {
        "model": registry.versions.model,
        "version": version.number,
        "aliases": version.aliases,
        "bundle": version.bundle,
        "registered": version.created.astimezone(UTC).isoformat(timespec="seconds"),
        "raw_data": [source for path in data_files(kept) for source in _sources(kept, path)],
        "prepared": {
            name.removeprefix("fingerprint."): value
            for name, value in sorted(version.tags.items())
            if name.startswith("fingerprint.")
        },
        "pretraining": _method(params),
        "pipeline": _run(registry, version.tags.get("pipeline")),
        "runs": _runs(registry, version, kept, list(stages)),
        "code": {
            "commit": version.tags.get("git.commit"),
            "dirty": version.tags.get("git.dirty") == "true",
            "changes": [asdict(change) for change in changes(kept)],
        },
        "params": {"kept": params, "differ_today": _differences(params, read_yaml(Path(PARAMS)))},
        "packages": {"kept": packages(kept), "differ_here": [asdict(other) for other in other_packages(kept)]},
        "report": _report(part(folder, "report"), version),
        "accepted": accepted(kept, stages),
        "decisions": [
            {
                "when": datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
                **{name: run.data.tags.get(name, "") for name in ("outcome", "summary", "champion")},
                "run_id": run.info.run_id,
            }
            for run in registry.decisions.of(version)
        ],
        "moves": [
            asdict(move)
            for move in registry.audit.moves()
            if version.number in (move.from_version, move.to_version)
        ],
    }  # fmt: skip


def _sources(kept: Path, path: Path) -> Iterator[Facts]:
    for out in read_yaml(kept / path).get("outs", []):
        yield {
            "path": (path.parent / str(out["path"])).as_posix(),
            "md5": out.get("md5"),
            "files": out.get("nfiles", 1),
            "bytes": out.get("size"),
        }


def _run(registry: ModelRegistry, run_id: str | None) -> Facts | None:
    return {"run_id": run_id, "page": run_page(registry.client, registry.state, run_id)} if run_id else None


def _runs(registry: ModelRegistry, version: Version, kept: Path, stages: list[str]) -> dict[str, Facts]:
    """Return each stage's run, whether this tracking server has the run, and what the stage's run record says."""
    found: dict[str, Facts] = {stage: {"run_id": None, "page": None, "elsewhere": False} for stage in stages}
    for tag, run_id in version.tags.items():
        if tag.startswith(RUN):
            stage = tag.removeprefix(RUN).removesuffix(ELSEWHERE)
            known = not tag.endswith(ELSEWHERE)
            page = run_page(registry.client, registry.state, run_id) if known else None
            found[stage] = {"run_id": run_id, "page": page, "elsewhere": not known}
    for stage, facts in found.items():
        path = kept / RUNS / f"{stage}.json"
        record: Facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        facts |= {"seconds": record.get("seconds"), "machine": record.get("machine", {})}
    return found


def _differences(then: Facts, today: Facts) -> dict[str, Facts]:
    return {name: {"then": one, "today": other} for name, (one, other) in differences(then, today).items()}


def _report(folder: Path, version: Version) -> Facts:
    path = folder / "report.json"
    facts: Facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        "mean_iou": facts.get("mean_iou", version.mean_iou),
        **{name: facts.get(name) for name in ("split", "fingerprint", "images", "class_iou")},
    }


def _tree(facts: Facts) -> Tree:
    aliases = f" ({', '.join(facts['aliases'])})" if facts["aliases"] else ""
    title = Text.assemble((f"{facts['model']} version {facts['version']}", "bold"), aliases)
    tree = Tree(title.append(f", registered {_time(facts['registered'])}, bundle {facts['bundle'][:SHORT]}"))
    _branch(tree, "raw data", map(_source, facts["raw_data"]), "not under DVC")
    _branch(
        tree, "prepared dataset", (f"{split} {fingerprint[:SHORT]}" for split, fingerprint in facts["prepared"].items())
    )
    _branch(tree, "runs", _run_lines(facts))
    code, files = facts["code"], facts["code"]["changes"]
    lines = sum((change["added"] or 0) + (change["removed"] or 0) for change in files)
    dirty = f", and {_count(len(files), 'changed file')} ({_count(lines, 'line')} of diff)" if code["dirty"] else ""
    _branch(tree, f"code: commit {code['commit'][:SHORT]}{dirty}" if code["commit"] else "code: no git commit",
            map(_change, files), "")  # fmt: skip
    params = facts["params"]
    differing = (f"{name}: {_value(one['then'])}, today {_value(one['today'])}"
                 for name, one in params["differ_today"].items())  # fmt: skip
    _branch(tree, f"params: {', '.join(params['kept'])}", differing, "the same as today's")
    main = (f"{name} {facts['packages']['kept'][name]}" for name in MAIN_PACKAGES if name in facts["packages"]["kept"])
    others = (f"{one['name']} {one['then']}, here {one['here'] or 'not installed'}"
              for one in facts["packages"]["differ_here"])  # fmt: skip
    _branch(tree, f"packages: {', '.join(main)}", others, "the same here")
    report = facts["report"]
    score = "none" if report["mean_iou"] is None else f"{report['mean_iou']:.3f}"
    where = f" on {_count(report['images'], 'image')} of {report['split']} {report['fingerprint'][:SHORT]}"
    tree.add(Text(f"report: mIoU {score}" + (where if report["images"] else "")))
    if facts["accepted"]:
        _branch(tree, "accepted without rerunning", map(_acceptance, facts["accepted"]))
    _branch(tree, "decisions", (f"{_time(one['when'])} {one['summary']}" for one in facts["decisions"]))
    _branch(tree, "moves of the champion", map(_move, facts["moves"]))
    return tree


def _branch(tree: Tree, title: str, lines: Iterable[str], empty: str = "none") -> None:
    """Add a branch. Its lines are added as text, not as markup, because text from users can contain brackets."""
    branch = tree.add(Text(title, style="cyan"))
    shown = list(lines) or ([empty] if empty else [])
    for line in shown[:SHOWN]:
        branch.add(Text(line, overflow="fold"))
    if len(shown) > SHOWN:
        branch.add(Text(f"and {len(shown) - SHOWN} more: --json shows all", style="dim"))


def _method(params: Facts) -> str | None:
    """Return the name of the self-supervised method. Params of older versions contain only this name, no settings."""
    method: Facts | str | None = params.get("pretrain", {}).get("method")
    return method["kind"] if isinstance(method, dict) else method


def _source(source: Facts) -> str:
    size = "" if source["bytes"] is None else f", {source['bytes'] / 1e6:,.1f} MB"
    return f"{source['path']} {(source['md5'] or '')[:SHORT]}, {_count(source['files'], 'file')}{size}"


def _run_lines(facts: Facts) -> Iterator[str]:
    for stage, run in facts["runs"].items():
        what = f"{stage} ({facts['pretraining']})" if stage == "pretrain" else stage
        where = [run["machine"].get("host"), run["machine"].get("gpu")] if run["machine"] else []
        took = "" if run["seconds"] is None else f", {run['seconds']:,.0f} s"
        took += "".join(f" on {name}" for name in where if name)
        if run["elsewhere"]:
            yield f"{what}: run {run['run_id']} on another tracking server{took}"
        else:
            yield f"{what}: {run['page'] or run['run_id'] or 'not tracked'}{took}"
    if pipeline := facts["pipeline"]:
        yield f"pipeline: {pipeline['page'] or pipeline['run_id']}"


def _change(change: Facts) -> str:
    counts = "binary" if change["added"] is None else f"+{change['added']} -{change['removed']}"
    return f"{change['path']} {counts}"


def _value(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)


def _acceptance(entry: Facts) -> str:
    return f"{entry['stage']} by {entry['who']}, {_time(entry['when'])}: {entry['why']} ({', '.join(entry['changed'])})"


def _move(move: Facts) -> str:
    state = "" if move["state"] == "done" else f" [{move['state']}]"
    note = f" ({move['note']})" if move["note"] else ""
    between = f"{move['from_version'] or 'none'} -> {move['to_version'] or 'none'}"
    who = f"{move['who']}, {_time(move['when'])}"
    return f"{move['number']} {move['kind']}{state}, {between}, by {who}: {move['why']}{note}"


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
