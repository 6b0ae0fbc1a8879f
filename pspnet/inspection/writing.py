"""Write the proposed section into params.yaml, and nothing else."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import differences
from pspnet.config.reading import parse_value, read_yaml
from pspnet.errors import Problem, UserError
from pspnet.inspection.findings import Inspection
from pspnet.inspection.section import as_yaml
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_file


class Target(NamedTuple):
    """Where the section goes, and the folder that it describes."""

    params: Path
    raw: Path
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
    before = read_yaml(target.params)
    section = _with_own_choices(inspection.dataset, before.get("dataset"))
    changed = differences({"dataset": before.get("dataset") or {}}, {"dataset": section})
    if changed:
        data = target.params.read_bytes()
        text = _replaced(data.decode(), section)
        if text is None or parse_value(text, str(target.params)) != {**before, "dataset": section}:
            found = "has a section `dataset` that is not written as a block of lines"
            raise UserError(Problem(str(target.params), found, fix="Replace it by the section above."))
        with whole_file(target.backup) as partial:
            partial.write_bytes(data)
        with whole_file(target.params) as partial:
            partial.write_bytes(text.encode())
        _print_changes(changed, target)
    else:
        terminal.out.print(f"\n{target.params} already has this section.", markup=False)
    _print_left_to_do(inspection, before.get("prepare") or {}, target)


def _with_own_choices(section: dict[str, Any], before: Any) -> dict[str, Any]:
    """The section with the choices that no folder can tell: the fraction and, for the same source, names and colors."""
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


def _print_changes(changed: dict[str, tuple[Any, Any]], target: Target) -> None:
    table = Table("parameter", "before", "now", title=f"written to {target.params}", title_justify="left")
    for key, values in changed.items():
        table.add_row(escape(key), *("" if value is None else escape(str(value)) for value in values))
    terminal.out.print(table)
    terminal.out.print(f"The previous params are in {target.backup}.", markup=False)


def _print_left_to_do(inspection: Inspection, prepare: dict[str, Any], target: Target) -> None:
    for key, (value, reason) in inspection.prepare.items():
        current: Any = prepare
        for part in key.split("."):
            current = current.get(part) if isinstance(current, dict) else None
        if current != value:
            text = f"Set prepare.{key}: {value} in {target.params} yourself ({reason})."
            terminal.out.print(text, markup=False)
