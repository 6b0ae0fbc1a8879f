"""Writes the proposal to params.yaml: the section `dataset`, and those keys of `prepare` that the data needs."""

from pathlib import Path
from typing import Any, NamedTuple

from pspnet.config.editing import edited
from pspnet.config.params import differences
from pspnet.config.reading import parse_value, read_yaml
from pspnet.config.registry import DEMO_MODEL
from pspnet.demo.streets import is_synthetic
from pspnet.errors import Problem, UserError
from pspnet.inspection.findings import Inspection
from pspnet.machine import terminal
from pspnet.machine.outputs import replace_text


class Target(NamedTuple):
    """Where to write the section, and the folder that the section describes."""

    params: Path
    raw: Path
    start: Path  # the recipe that replaces the params of the demo
    backup: Path


def check_folder(folder: Path, target: Target) -> None:
    """Raise an error if the folder is not the one that params.yaml describes."""
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
    is_demos = target.start.exists() and _is_for_the_demo(current, target.raw)
    source = target.start if is_demos else target.params
    before = read_yaml(source)
    section, old = _with_own_choices(inspection.dataset, before), before.get("dataset") or {}
    values = {f"dataset.{key}": value for key, value in section.items() if old.get(key) != value}
    values |= {f"prepare.{key}": value for key, (value, _) in inspection.prepare.items()}
    text = edited(source.read_text(encoding="utf-8"), values, str(source))
    changed = differences(current, parse_value(text, str(target.params)))
    if not changed:
        terminal.out.print(f"\n{target.params} already says this.", markup=False)
        return
    replace_text(target.params, text, target.backup)
    if is_demos:
        note = f"{target.params} was the demo's; everything outside `dataset` now comes from {source}."
        terminal.out.print(note, markup=False)
    terminal.print_differences(f"written to {target.params}", changed)
    terminal.out.print(f"The previous params are in {target.backup}.", markup=False)


def _is_for_the_demo(params: dict[str, Any], raw: Path) -> bool:
    registry = params.get("registry")
    return isinstance(registry, dict) and registry.get("model") == DEMO_MODEL and not is_synthetic(raw)


def _with_own_choices(section: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The section with the user's own choices, which cannot be detected from a folder.

    These are the fraction and, if the source stays the same, names and colors.
    """
    before = params.get("dataset")
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
