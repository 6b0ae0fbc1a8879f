"""Inspects a folder of raw data: finds the likely layout, the images and masks, and the params that fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pspnet.config.prepare import PrepareParams
from pspnet.errors import Problem, UserError
from pspnet.inspection.class_names import names_beside
from pspnet.inspection.facts import (
    is_mask,
    open_images,
    open_masks,
    stable_sample,
)
from pspnet.inspection.findings import IGNORED, Inspection
from pspnet.inspection.fixed_classes import OWNERS, differ, foreign_name
from pspnet.inspection.listing import Listing, list_files
from pspnet.inspection.meaning import Remark, interpret
from pspnet.inspection.ranking import Reading, Readings, find_readings, read, section_of
from pspnet.inspection.remarks import (
    USUAL_MEGAPIXELS,
    about_groups,
    about_images,
    about_masks,
    about_other_files,
    about_shares,
    about_splits,
)
from pspnet.inspection.section import dataset_params, source_section
from pspnet.inspection.sequences import (
    EVERY_IMAGE,
    USUAL,
    choose_grouping,
    compare_neighbors,
    deal_masks,
    groupings,
    official_splits,
)
from pspnet.inspection.sheet import MOST_SHOWN, contact_sheet
from pspnet.inspection.spelling import counted
from pspnet.inspection.split_lists import split_lists
from pspnet.raw.classes import Classes, Declared, declared_classes
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.layouts.voc import OWN_NAMES
from pspnet.raw.masks import spelled
from pspnet.raw.sample import RawSample

Tick = Callable[[int, int, str], None]
Step = Callable[[int], None]

MOST_MASKS = 200
FEW_MASKS = 30
MASKS_FOR_CHOICE, SHOWN_FOR_CHOICE = 20, 6
STEPS = ("names", "layout", "images", "masks", "groups", "contact sheet")


def inspect_folder(
    folder: Path, tick: Tick, most_masks: int = MOST_MASKS, use: int | None = None, asked: PrepareParams = USUAL
) -> Inspection:
    """Inspect the folder as described by its best reading, or by reading number `use`.

    If several readings are equally good, the result instead contains a short inspection of each.
    """

    def step(place: int) -> None:
        tick(place, len(STEPS), STEPS[place])

    step(0)
    listing = list_files(folder)
    step(1)
    readings = find_readings(listing)
    if use and use > len(readings.found):
        found = f"is {use}, and {folder} has {counted(len(readings.found), 'reading')}"
        raise UserError(Problem("--use", found, "the number of a reading", f"List them: pspnet data inspect {folder}"))
    if not readings.found:
        return _without_layout(listing, readings, step)
    if not readings.sure and not use:
        return _choices(listing, readings, step)
    number = use or 1
    inspection = _inspected(listing, readings.found[number - 1], step, most_masks, asked)
    inspection.number = number
    inspection.readings = [reading.guess for reading in readings.found]
    inspection.others = readings.unreadable
    return inspection


def _without_layout(listing: Listing, readings: Readings, step: Step) -> Inspection:
    inspection = Inspection(listing, others=readings.unreadable)
    step(2)
    inspection.image_facts = open_images((file.path for file in listing.images), listing.raw)
    about_images(inspection)
    some = stable_sample((file.path for file in listing.images), FEW_MASKS)
    inspection.only_masks = bool(some) and all(is_mask(path, listing.raw) for path in some)
    step(5)
    inspection.sheet = _sheet(inspection)
    return inspection


def _choices(listing: Listing, readings: Readings, step: Step) -> Inspection:
    """A short inspection of each reading. To choose one, the user needs the pictures, not the details."""
    inspection = Inspection(listing, readings=[reading.guess for reading in readings.found])
    for number, reading in enumerate(readings.found, start=1):
        step(min(number + 1, len(STEPS) - 1))
        choice = Inspection(listing, reading.guess, number, images=reading.images, problems=reading.problems)
        choice.dataset = _section_of_masks(choice, MASKS_FOR_CHOICE)
        choice.sheet = _sheet(choice, SHOWN_FOR_CHOICE)
        inspection.choices.append(choice)
    return inspection


def _section_of_masks(inspection: Inspection, most: int) -> dict[str, Any]:
    source, classes = _masks(inspection, most)
    return section_of(source, **classes)


def _inspected(listing: Listing, reading: Reading, step: Step, most_masks: int, asked: PrepareParams) -> Inspection:
    guess = reading.guess
    inspection = Inspection(listing, guess, images=reading.images, problems=reading.problems)
    step(2)
    inspection.image_facts = open_images((item.image for item in inspection.images), listing.raw)
    about_images(inspection)
    if guess.note:
        inspection.remarks.append(Remark(guess.note, "Look at the contact sheet."))
    step(3)
    source, classes = _masks(inspection, most_masks)
    step(4)
    _groups(inspection, asked)
    _write_section(inspection, source, classes, asked)
    step(5)
    inspection.sheet = _sheet(inspection)
    return inspection


def _masks(inspection: Inspection, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section `source`, and the keys about classes in the section `dataset`."""
    layout = inspection.layout
    assert layout
    listing, labeled = inspection.listing, inspection.labeled
    masks = [item.mask for item in labeled if item.mask]
    if layout.layout != "folder":
        inspection.mask_facts = open_masks(masks, listing.raw, True, most)
        inspection.values = inspection.mask_facts.table("numbers")
        source = source_section(layout.layout, layout.source)
        about_masks(inspection)
        declared = _classes(inspection, section_of(source))
        if declared:
            inspection.class_names = {value: declared.names[place] for value, place in declared.values.items()}
        if own := _own_classes(inspection):
            return source, own
        _about_unknown(inspection, source, declared)
        return source, {}
    inspection.mask_facts = open_masks(masks, listing.raw, False, most)
    names, file = names_beside(listing, inspection.mask_facts.values)
    several = any(len(mask.paths) > 1 for mask in masks)
    found = interpret(inspection.mask_facts, several, names)
    inspection.values, inspection.class_names = found.table, names
    inspection.remarks += found.remarks
    if names:
        inspection.remarks.append(
            Remark(f"the values are named in {file}", "The classes below take their names from this file.")
        )
    source = source_section("folder", {**layout.source, "mask_kind": found.kind, "mask_threshold": found.threshold})
    about_masks(inspection)
    if (listing.raw.root / "classes.yaml").is_file():
        inspection.remarks.append(Remark("classes.yaml lists the classes", "The section below leaves them out."))
        return source, {}
    return source, {"classes": found.classes, "ignore_values": found.ignore_values}


def _own_classes(inspection: Inspection) -> dict[str, Any] | None:
    """The classes of data that has the layout of a public dataset, but probably not the classes of that dataset."""
    layout, root = inspection.layout, inspection.listing.raw.root
    assert layout
    owner = OWNERS.get(layout.layout)
    if not owner or any((root / name).is_file() for name in ("classes.yaml", OWN_NAMES)):
        return None
    names, file = names_beside(inspection.listing, inspection.mask_facts.values)
    foreign = foreign_name(layout.layout, inspection.images)
    if not foreign and not differ(names, inspection.class_names):
        return None
    found = interpret(inspection.mask_facts, False, names)
    said = f"the folders are those of {owner}, but "
    said += f"{foreign} is not one of its images" if foreign else f"{file} lists other classes"
    named = f"The classes below take their names from {file}." if names else "Name the classes in the section below."
    advice = f"{named} If these are the classes of {owner}, set classes: {{}} and ignore_values: []."
    inspection.class_names = names
    inspection.remarks += [Remark(said, advice), *found.remarks]
    return {"classes": found.classes, "ignore_values": found.ignore_values}


def _about_unknown(inspection: Inspection, source: dict[str, Any], classes: Classes | None) -> None:
    if not classes or inspection.values is None:
        return
    inspection.class_names |= dict.fromkeys(classes.ignore_values, IGNORED)
    known = {*classes.values, *classes.ignore_values}
    unknown = inspection.values[~inspection.values["value"].isin(known)]
    if len(unknown):
        listed = ", ".join(spelled(int(value)) for value in unknown["value"].head(8))
        found = (
            f"unknown values {listed} ({unknown['share'].sum():.1%} of the pixels): layout {source['layout']} has "
            f"{counted(len(classes.names), 'class')} without them"
        )
        advice = "`prepare` rejects masks with unknown values: list the classes and ignore_values yourself."
        inspection.remarks.append(Remark(found, advice))


def _groups(inspection: Inspection, asked: PrepareParams) -> None:
    found, ids = inspection.images, [item.id for item in inspection.images]
    inspection.groupings = groupings(ids)
    inspection.neighbors = compare_neighbors(found, inspection.listing.raw)
    inspection.lists = split_lists(inspection.listing, {*ids})
    official = official_splits(found)
    if official:
        inspection.prepare["official_splits"] = official
    mode = official[0] if official else "kept"
    best = choose_grouping(inspection.groupings, found, inspection.neighbors, mode, asked)
    inspection.group_pattern = best.pattern if best else EVERY_IMAGE
    about_groups(inspection, best)
    about_splits(inspection)
    about_shares(inspection, deal_masks(found, inspection.group_pattern, mode, asked), asked)


def _write_section(
    inspection: Inspection, source: dict[str, Any], classes: dict[str, Any], asked: PrepareParams
) -> None:
    section = section_of(source, group_pattern=inspection.group_pattern, **classes)
    inspection.unclear = not _classes(inspection, section)
    if inspection.unclear:
        inspection.remarks.append(
            Remark("it is unclear which values are classes", "Name them under `classes` in the section below.")
        )
    dataset_params(section)
    inspection.dataset = section
    if inspection.layout and inspection.layout.layout == "folder":  # read again, now that the kind of masks is known
        again = read(inspection.layout._replace(source=source), inspection.listing)
        if isinstance(again, Reading):
            inspection.images, inspection.problems = again.images, again.problems
    about_other_files(inspection, asked)
    most = max((w * h for w, h in inspection.image_facts.sizes.values()), default=0)
    if most > USUAL_MEGAPIXELS * 10**6:
        inspection.prepare["max_megapixels"] = (-(-most // 10**6), "the largest image that was decoded")


def _classes(inspection: Inspection, section: dict[str, Any]) -> Classes | None:
    try:
        dataset = dataset_params(section)
        own: Declared | None = LAYOUTS[dataset.source.layout].classes(dataset.source, inspection.listing.raw)
        return declared_classes(dataset, inspection.listing.raw.root, own)
    except UserError:
        return None


def _sheet(inspection: Inspection, most: int = MOST_SHOWN) -> bytes | None:
    files = inspection.listing.raw
    if inspection.layout and inspection.dataset:
        classes = _classes(inspection, inspection.dataset)
        samples = [RawSample(item.id, item.image, item.mask, "", None) for item in inspection.labeled]
        title = f"{files.root}: {inspection.layout.layout}, {counted(len(inspection.images), 'image')}, " + counted(
            len(samples), "mask"
        )
    else:
        classes, samples = None, [RawSample(file.name, file.path, None, "", None) for file in inspection.listing.images]
        title = f"{files.root}: {counted(len(samples), 'image')}, no masks found"
    return contact_sheet(samples, files, classes, title, most)
