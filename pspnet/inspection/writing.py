"""Write the proposal into params.yaml: the section dataset, and the keys of prepare that the data needs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import differences
from pspnet.config.reading import parse_value, read_yaml
from pspnet.config.registry import DEMO_MODEL
from pspnet.demo.streets import is_synthetic
from pspnet.errors import Problem, UserError
from pspnet.inspection.findings import Inspection
from pspnet.inspection.section import as_yaml
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_file


class Target(NamedTuple):
    """Where the section goes, and the folder that it describes."""

    params: Path
    raw: Path
    start: Path  # the recipe that replaces the demo's params
    backup: Path


def check_folder(folder: Path, target: Target) -> None:
    """Raises unless the folder is the one that params.yaml describes."""
    own, raw = folder.resolve(), target.raw.resolve()
    if own == raw or not folder.exists():
        return
    if own.is_relative_to(raw):
        fix = f"Inspect all of it: pspnet data inspect {target.raw} --write"
        raise UserError(Problem(str(folder), f"is only a part of {target.raw}", "the whole folder", fix))
    fix = (
        f"Move its files into {target.raw} first. If {target.raw} already has data with this layout, add the folder as "
        f"a batch: pspnet data add {folder}"
    )
    raise UserError(Problem(str(folder), f"is not {target.raw}", f"the folder that {target.params} describes", fix))


def write_section(inspection: Inspection, target: Target) -> None:
    assert inspection.dataset
    if inspection.unclear:
        found = "was not changed: it is unclear which values are classes"
        raise UserError(Problem(str(target.params), found, fix="Copy the section above, and name the classes in it."))
    current = read_yaml(target.params)
    data = target.params.read_bytes()
    is_demos = target.start.exists() and _is_for_the_demo(current, target.raw)
    source = target.start if is_demos else target.params
    before, text = read_yaml(source), source.read_text(encoding="utf-8")
    section = _with_own_choices(inspection.dataset, before.get("dataset"))
    after = {**before, "dataset": section, "prepare": _merged(before.get("prepare") or {}, inspection.prepare)}
    changed = differences(current, after)
    if not changed:
        terminal.out.print(f"\n{target.params} already says this.", markup=False)
        return
    replaced = _replaced(text, section)
    if replaced is not None:
        for key, (value, _) in inspection.prepare.items():
            replaced = _with_value(replaced, ["prepare", *key.split(".")], value)
    if replaced is None or parse_value(replaced, str(target.params)) != after:
        found = "has a section `dataset` or `prepare` that is not written as a block of lines"
        raise UserError(Problem(str(target.params), found, fix="Replace it with the section above."))
    with whole_file(target.backup) as partial:
        partial.write_bytes(data)
    with whole_file(target.params) as partial:
        partial.write_bytes(replaced.encode())
    if source != target.params:
        text = f"{target.params} was the demo's; everything outside `dataset` now comes from {source}."
        terminal.out.print(text, markup=False)
    _print_changes(changed, target)


def _is_for_the_demo(params: dict[str, Any], raw: Path) -> bool:
    registry = params.get("registry")
    return isinstance(registry, dict) and registry.get("model") == DEMO_MODEL and not is_synthetic(raw)


def _merged(prepare: dict[str, Any], needed: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in prepare.items()}
    for key, (value, _) in needed.items():
        *sections, name = key.split(".")
        inner = merged
        for one in sections:
            inner = inner.setdefault(one, {})
        inner[name] = value
    return merged


def _with_own_choices(section: dict[str, Any], before: Any) -> dict[str, Any]:
    """The section with the choices that no folder reveals: the fraction and, for the same source, names and colors."""
    if not isinstance(before, dict):
        return section
    kept = {"labeled_fraction": before.get("labeled_fraction", section["labeled_fraction"])}
    old, classes = before.get("classes"), section["classes"]
    if before.get("source") == section["source"] and isinstance(old, dict):
        names = {str(value): name for name, value in old.items()}
        kept["classes"] = {
            names.get(str(value), name) if name.startswith("class_") else name: value for name, value in classes.items()
        }
        if {*old} <= {*kept["classes"]}:
            kept["colors"] = before.get("colors") or {}
    return {**section, **kept}


def _replaced(text: str, section: dict[str, Any]) -> str | None:
    """The text with the lines of `dataset` replaced; comments before the next section stay."""
    lines = text.splitlines(keepends=True)
    starts = [place for place, line in enumerate(lines) if re.match(r"[^\s#]", line)]
    first = next((place for place in starts if re.match(r"dataset\s*:", lines[place])), None)
    if first is None:
        return None
    end = next((place for place in starts if place > first), len(lines))
    while end > first + 1 and re.match(r"\s*$|#", lines[end - 1]):
        end -= 1
    return "".join([*lines[:first], as_yaml(section, {}), *lines[end:]])


def _with_value(text: str, path: list[str], value: Any) -> str:
    """The text with a new value on the key's line, whose comment stays."""
    lines, depth = text.splitlines(keepends=True), 0
    for place, line in enumerate(lines):
        key = re.match(r"( *)([^\s#:]+)\s*:", line)
        if key is None or len(key[1]) > 2 * depth:
            continue
        if len(key[1]) < 2 * depth:
            break
        if key[2] == path[depth]:
            depth += 1
            if depth == len(path):
                rest = line[key.end() :].rstrip("\n")
                comment = re.search(r"\s+#.*", rest)
                lines[place] = f"{line[: key.end()]} {value}{comment[0] if comment else ''}\n"
                break
    return "".join(lines)


def _print_changes(changed: dict[str, tuple[Any, Any]], target: Target) -> None:
    table = Table("parameter", "before", "now", title=f"written to {target.params}", title_justify="left")
    for key, values in changed.items():
        table.add_row(escape(key), *("" if value is None else escape(str(value)) for value in values))
    terminal.out.print(table)
    terminal.out.print(f"The previous params are in {target.backup}.", markup=False)
