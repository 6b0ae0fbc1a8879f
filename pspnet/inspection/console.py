"""`pspnet data inspect`: print what a folder of raw data contains, and the params to paste."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import typer
from rich.markup import escape
from rich.table import Table

from pspnet.config.params import load_params
from pspnet.config.prepare import PrepareParams
from pspnet.errors import Problem, UserError
from pspnet.inspection.findings import IGNORED, Inspection
from pspnet.inspection.inspecting import inspect_folder
from pspnet.inspection.sequences import USUAL
from pspnet.inspection.spelling import counted
from pspnet.inspection.writing import Target, check_folder, write_section
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_file
from pspnet.raw.masks import spelled

MOST_ROWS = 20
BEGIN = "# ---- params.yaml, if this folder is data/raw: replace these keys ----"
END = "# ---- end ----"
SEVERAL = "several readings are possible; choose one with --use"


def asked_for(params: Path) -> PrepareParams:
    """The section `prepare` of params.yaml, or the usual shares if params.yaml does not have that section."""
    try:
        return load_params(params).prepare
    except UserError:
        return USUAL


def inspect(
    folder: Path,
    sheet: Path,
    most_masks: int,
    as_json: bool,
    use: int | None,
    asked: PrepareParams,
    target: Target | None,
) -> None:
    """Inspect a folder and print the result. `target`: where to write the section, if it is to be written."""
    if sheet.resolve().is_relative_to(folder.resolve()):
        found = "is inside the inspected folder"
        raise UserError(Problem(str(sheet), found, "a path outside it", "Choose one: --sheet PATH"))
    if target:
        check_folder(folder, target)
    with terminal.progress("inspect") as tick:
        inspection = inspect_folder(folder, tick, most_masks, use, asked)
    for one in inspection.choices or [inspection]:
        if one.sheet:
            _write(_sheet_of(one, inspection, sheet), one.sheet)
    if as_json:
        print(json.dumps(_facts(inspection, sheet), indent=2))  # noqa: T201
    elif inspection.choices:
        _print_choices(folder, inspection, sheet)
    else:
        _print(folder, inspection, sheet, target is None)
    if inspection.choices and target:
        found = f"was not changed: {folder} can be read in {len(inspection.choices)} ways"
        fix = f"Look at the pictures and choose one: pspnet data inspect {folder} --write --use N"
        raise UserError(Problem(str(target.params), found, fix=fix))
    if not inspection.dataset and not inspection.choices:
        raise typer.Exit(1)
    if target:
        write_section(inspection, target)


def _sheet_of(one: Inspection, inspection: Inspection, sheet: Path) -> Path:
    return sheet.with_stem(f"{sheet.stem}-{one.number}") if inspection.choices else sheet


def _write(sheet: Path, data: bytes) -> None:
    try:
        with whole_file(sheet) as partial:
            partial.write_bytes(data)
    except OSError as error:
        found = f"cannot be written ({error.strerror})"
        raise UserError(Problem(str(sheet), found, "a writable path", "Choose another: --sheet PATH")) from None


def _print_choices(folder: Path, inspection: Inspection, sheet: Path) -> None:
    terminal.out.print(f"[bold]{escape(str(folder))} can be read in {len(inspection.choices)} ways:[/]")
    for choice in inspection.choices:
        layout = choice.layout
        assert layout
        terminal.out.print(f"[bold]{choice.number}. layout {layout.layout}[/] ({escape(layout.reason)})")
        terminal.out.print(f"   {_images(choice)}{_classes(choice)}", markup=False)
        if layout.note:
            terminal.out.print(f"   {_sentence(layout.note)}", markup=False)
        if choice.sheet:
            terminal.out.print(f"   Look at {_sheet_of(choice, inspection, sheet)}.", markup=False)
    terminal.out.print(f"Which one is right? Choose it: pspnet data inspect {folder} --use N", markup=False)


def _classes(choice: Inspection) -> str:
    named = [*choice.dataset["classes"]] if choice.dataset else []
    names = named or list(dict.fromkeys(name for name in choice.class_names.values() if name != IGNORED))
    return f"; classes: {_first_few(names)}" if names else ""


def _images(inspection: Inspection) -> str:
    count, labeled = len(inspection.images), len(inspection.labeled)
    return f"{counted(count, 'image')}, {labeled:,} with a mask, {count - labeled:,} without"


def _print(folder: Path, inspection: Inspection, sheet: Path, with_section: bool) -> None:
    _print_layout(folder, inspection)
    _print_files(inspection)
    _print_values(inspection)
    for remark in inspection.remarks:
        terminal.out.print(f"[bold]•[/] {escape(_sentence(remark.found))}\n  [dim]{escape(remark.advice)}[/]")
    if inspection.sheet:
        question = "are these the masks of these images?" if inspection.layout else "these are some of the images."
        terminal.out.print(f"\nLook at {sheet}: {question}", markup=False)
    if inspection.dataset and (with_section or inspection.unclear):
        terminal.out.print(f"\n{BEGIN}\n{inspection.section}{END}", markup=False)


def _print_layout(folder: Path, inspection: Inspection) -> None:
    layout = inspection.layout
    if layout:
        terminal.out.print(f"[bold]{escape(str(folder))}: layout {layout.layout}[/] ({escape(layout.reason)})")
    elif inspection.others:
        terminal.out.print(f"[bold]{escape(str(folder))}: a layout that cannot be read[/]")
    else:
        terminal.out.print(f"[bold]{escape(str(folder))}: {escape(inspection.missing)}[/]")
    for other in inspection.others:
        terminal.out.print(
            f"It cannot be read as layout {other.layout} ({other.reason}): {other.obstacle}", markup=False
        )
    for number, other in enumerate(inspection.readings, start=1):
        if number != inspection.number:
            text = f"It can also be read as layout {other.layout} ({other.reason}): --use {number}"
            terminal.out.print(text, markup=False)


def _print_files(inspection: Inspection) -> None:
    table = Table("folder", "files", "suffix", show_edge=False, pad_edge=False)
    rows = sorted(inspection.listing.folders().items(), key=lambda item: (-item[1], item[0]))
    for (folder, suffix), count in rows[:MOST_ROWS]:
        table.add_row(escape(folder), f"{count:,}", escape(suffix) or "(none)")
    if len(rows) > MOST_ROWS:
        table.add_row(f"{len(rows) - MOST_ROWS:,} more", f"{sum(count for _, count in rows[MOST_ROWS:]):,}", "")
    if rows:
        terminal.out.print(table)
    archives = inspection.listing.archives()
    if archives:
        text = f"{counted(len(archives), 'archive')}, read without unpacking: {_first_few(archives)}"
        terminal.out.print(text, markup=False)
    problems = [*inspection.listing.problems, *inspection.problems]
    if problems:
        terminal.out.print(f"{counted(len(problems), 'file')} cannot be used, such as:", markup=False)
        for problem in problems[:3]:
            terminal.out.print(f"  {problem}", markup=False)
    if inspection.layout:
        terminal.out.print(_images(inspection), markup=False)
    if looked := inspection.image_facts.looked_at:
        facts = inspection.image_facts
        kinds = f"{_counted(facts.formats)}; {_counted(facts.kinds)}"
        terminal.out.print(f"{looked:,} opened, {facts.decoded:,} of them decoded: {kinds}", markup=False)
        if facts.sizes:
            terminal.out.print(f"sizes: {_sizes([*facts.sizes.values()])}", markup=False)


def _print_values(inspection: Inspection) -> None:
    values = inspection.values
    if values is None or values.empty:
        return
    table = Table("value", "class", "pixels", "at a border", "masks", show_edge=False, pad_edge=False,
                  title=f"in {len(inspection.mask_facts.looked_at):,} of {counted(len(inspection.labeled), 'mask')}",
                  title_justify="left")  # fmt: skip
    for row in values.head(MOST_ROWS).itertuples():
        name = inspection.class_name(int(row.value))
        table.add_row(
            spelled(int(row.value)).strip("'"),
            escape(name),
            f"{row.share:.2%}",
            f"{row.at_border:.0%}",
            f"{row.masks:,.0f}",
        )
    if len(values) > MOST_ROWS:
        rest = values.iloc[MOST_ROWS:]
        table.add_row(f"{len(rest):,} more", "", f"{rest['share'].sum():.2%}", "", "")
    terminal.out.print(table)


def _facts(inspection: Inspection, sheet: Path) -> dict[str, object]:
    facts, layout = inspection.image_facts, inspection.layout
    values = inspection.values
    return {
        "layout": layout.layout if layout else None,
        "reason": layout.reason if layout else (SEVERAL if inspection.choices else inspection.missing),
        "readings": [
            {"number": number, "layout": guess.layout, "reason": guess.reason, "note": guess.note}
            for number, guess in enumerate(inspection.readings, start=1)
        ],
        "used": None if inspection.choices or not layout else inspection.number,
        "others": [{"layout": one.layout, "reason": one.reason, "obstacle": one.obstacle} for one in inspection.others],
        "folders": [
            {"folder": folder, "suffix": suffix, "files": count}
            for (folder, suffix), count in sorted(inspection.listing.folders().items())
        ],
        "archives": inspection.listing.archives(),
        "images": len(inspection.images),
        "masks": len(inspection.labeled),
        "looked_at": {
            "images": facts.looked_at,
            "decoded": facts.decoded,
            "masks": len(inspection.mask_facts.looked_at),
        },
        "formats": dict(facts.formats),
        "kinds": dict(facts.kinds),
        "unusable": facts.unusable,
        "problems": [str(problem) for problem in (*inspection.listing.problems, *inspection.problems)],
        "values": [] if values is None else json.loads(values.to_json(orient="records")),
        "group_patterns": [grouping._asdict() for grouping in inspection.groupings],
        "remarks": [remark._asdict() for remark in inspection.remarks],
        "dataset": inspection.dataset,
        "prepare": {key: value for key, (value, _) in inspection.prepare.items()},
        "sheet": str(sheet) if inspection.sheet else None,
        "sheets": [str(_sheet_of(one, inspection, sheet)) for one in inspection.choices if one.sheet],
    }


def _sizes(sizes: list[tuple[int, int]]) -> str:
    if len({*sizes}) == 1:
        return f"all {sizes[0][0]} x {sizes[0][1]}"
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    (small_w, small_h), (large_w, large_h) = by_area[0], by_area[-1]
    middle = f"{median(w for w, _ in sizes):.0f} x {median(h for _, h in sizes):.0f}"
    return f"from {small_w} x {small_h} to {large_w} x {large_h}, median {middle}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _first_few(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:5]) + (", ..." if len(every) > 5 else "")


def _sentence(text: str) -> str:
    is_name = any(character in text.partition(" ")[0] for character in "_./")
    return (text[0] if is_name else text[0].upper()) + text[1:] + ("" if text.endswith(".") else ".")
