"""Inspect a folder of raw data: the likely layout, its images and masks, and the params that fit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pspnet.dataset.store.splits import ANNOTATED
from pspnet.errors import Problem, UserError
from pspnet.inspection.class_names import names_beside
from pspnet.inspection.facts import (
    is_mask,
    open_images,
    open_masks,
    stable_sample,
)
from pspnet.inspection.findings import IGNORED, Inspection
from pspnet.inspection.listing import Listing, list_files
from pspnet.inspection.meaning import MIDDLE, Remark, interpret
from pspnet.inspection.partners import candidates, is_derived
from pspnet.inspection.patterns import patterns_for
from pspnet.inspection.recognition import LayoutGuess, recognize_layouts
from pspnet.inspection.remarks import (
    USUAL_MEGAPIXELS,
    about_groups,
    about_images,
    about_masks,
    about_splits,
)
from pspnet.inspection.section import dataset_params, source_section
from pspnet.inspection.sequences import (
    EVERY_IMAGE,
    choose_grouping,
    compare_neighbors,
    deal_masks,
    groupings,
    official_splits,
    split_lists,
)
from pspnet.inspection.sheet import contact_sheet
from pspnet.raw.classes import Classes, Declared, declared_classes
from pspnet.raw.layouts import LAYOUTS
from pspnet.raw.masks import spelled
from pspnet.raw.sample import RawSample

Tick = Callable[[int, int, str], None]

MOST_MASKS = 200
FEW_MASKS = 30
STEPS = ("names", "layout", "images", "masks", "groups", "contact sheet")


def inspect_folder(folder: Path, tick: Tick, most_masks: int = MOST_MASKS) -> Inspection:
    def step(place: int) -> None:
        tick(place, len(STEPS), STEPS[place])

    step(0)
    inspection = Inspection(list_files(folder))
    step(1)
    _recognize(inspection)
    step(2)
    paths = [item.image for item in inspection.images] or [file.path for file in inspection.listing.images]
    inspection.image_facts = open_images(paths, inspection.listing.raw)
    about_images(inspection)
    if inspection.layout:
        if inspection.layout.note:
            inspection.remarks.append(Remark(inspection.layout.note, "Or name the classes in params.yaml."))
        step(3)
        source, classes = _masks(inspection, most_masks)
        step(4)
        _groups(inspection)
        _write_section(inspection, source, classes)
    else:
        some = stable_sample((file.path for file in inspection.listing.images), FEW_MASKS)
        inspection.only_masks = bool(some) and all(is_mask(path, inspection.listing.raw) for path in some)
    step(5)
    inspection.sheet = _sheet(inspection)
    return inspection


def _recognize(inspection: Inspection) -> None:
    """Tries the layouts with a signature first; pairs of names are weaker evidence, since most layouts have them."""
    for guess in recognize_layouts(inspection.listing):
        tried = guess
        if guess.layout not in LAYOUTS:
            tried = guess._replace(obstacle=guess.obstacle or "this version cannot read this layout")
        elif not guess.obstacle and not inspection.layout:
            tried = _try_layout(guess, inspection)
        if tried.obstacle or inspection.layout:
            inspection.others.append(tried)
        else:
            inspection.layout = tried
    if not inspection.layout and not inspection.others:
        attempts = (_try_layout(guess, inspection) for guess in _pairs(inspection.listing))
        inspection.layout = next((tried for tried in attempts if not tried.obstacle), None)


def _pairs(listing: Listing) -> Iterator[LayoutGuess]:
    files = {file.name: file.path for file in listing.images}
    names = [name for name in files if not is_derived(name)]
    for partners in candidates(names, lambda name: is_mask(files[name], listing.raw)):
        found = patterns_for(partners, names)
        kind = "instances" if partners.several else "numbers"
        source = {**found._asdict(), "mask_kind": kind, "mask_threshold": MIDDLE}
        yield LayoutGuess("folder", "images and masks have matching names", source)


def _try_layout(guess: LayoutGuess, inspection: Inspection) -> LayoutGuess:
    """Reads the folder by the guessed layout; returns the guess, with the obstacle if it failed."""
    images, problems = [], []
    try:
        source = dataset_params(_section(source_section(guess.layout, guess.source))).source
        for item in LAYOUTS[guess.layout].find(source, inspection.listing.raw):
            if isinstance(item, Problem):
                problems.append(item)
            elif item.problem:
                problems.append(item.problem)
            else:
                images.append(item)
    except UserError as error:
        return guess._replace(obstacle=str(error))
    if not any(item.mask for item in images):
        shown = "; ".join(str(problem) for problem in problems[:3])
        return guess._replace(obstacle=f"no image has a usable mask{f': {shown}' if shown else ''}")
    inspection.images, inspection.problems = images, problems
    if guess.layout == "folder":
        first = inspection.labeled[0]
        return guess._replace(reason=f"names: {first.image} has the mask {first.mask.path}" if first.mask else "")
    return guess


def _section(source: dict[str, Any], **known: Any) -> dict[str, Any]:
    usual = {"classes": {}, "colors": {}, "ignore_values": [], "group_pattern": EVERY_IMAGE, "labeled_fraction": 1.0}
    return {"source": source, **usual, **known}


def _masks(inspection: Inspection, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source section, and the keys about classes for the dataset section."""
    layout = inspection.layout
    assert layout
    listing, labeled = inspection.listing, inspection.labeled
    masks = [item.mask for item in labeled if item.mask]
    if layout.layout != "folder":
        inspection.mask_facts = open_masks(masks, listing.raw, True, most)
        inspection.values = inspection.mask_facts.table("numbers")
        source = source_section(layout.layout, layout.source)
        about_masks(inspection)
        _classes_of_layout(inspection, source)
        return source, {}
    inspection.mask_facts = open_masks(masks, listing.raw, False, most)
    values = {value for mask in inspection.mask_facts.looked_at for value in mask.values.tolist()}
    names, file = names_beside(listing, values)
    several = any(len(mask.paths) > 1 for mask in masks)
    found = interpret(inspection.mask_facts, several, names)
    inspection.values, inspection.class_names = found.table, names
    inspection.remarks += found.remarks
    if names:
        inspection.remarks.append(Remark(f"{file} names the values", "The classes below take their names from it."))
    source = source_section("folder", {**layout.source, "mask_kind": found.kind, "mask_threshold": found.threshold})
    about_masks(inspection)
    if (listing.raw.root / "classes.yaml").is_file():
        inspection.remarks.append(Remark("classes.yaml names the classes", "The section below leaves them out."))
        return source, {}
    return source, {"classes": found.classes, "ignore_values": found.ignore_values}


def _classes_of_layout(inspection: Inspection, source: dict[str, Any]) -> None:
    classes = _classes(inspection, _section(source))
    if not classes or inspection.values is None:
        return
    inspection.class_names = {value: classes.names[place] for value, place in classes.values.items()}
    inspection.class_names |= dict.fromkeys(classes.ignore_values, IGNORED)
    known = {*classes.values, *classes.ignore_values}
    unknown = inspection.values[~inspection.values["value"].isin(known)]
    if len(unknown):
        listed = ", ".join(spelled(int(value)) for value in unknown["value"].head(8))
        found = (
            f"unknown values {listed} ({unknown['share'].sum():.1%} of the pixels): layout {source['layout']} has "
            f"{len(classes.names)} classes without them"
        )
        advice = "`prepare` refuses masks with unknown values: name the classes and ignore_values yourself."
        inspection.remarks.append(Remark(found, advice))


def _groups(inspection: Inspection) -> None:
    found, ids = inspection.images, [item.id for item in inspection.images]
    inspection.groupings = groupings(ids)
    inspection.neighbors = compare_neighbors(found, inspection.listing.raw)
    inspection.lists = split_lists(inspection.listing, {*ids})
    official = official_splits(found)
    if official:
        inspection.prepare["official_splits"] = official
    mode = official[0] if official else "kept"
    best = choose_grouping(inspection.groupings, found, inspection.neighbors, mode)
    inspection.group_pattern = best.pattern if best else EVERY_IMAGE
    about_groups(inspection, best)
    about_splits(inspection)
    masks = len(inspection.labeled)
    splits = deal_masks(found, inspection.group_pattern, mode)
    if not all(splits.get(split) for split in ANNOTATED):
        shown = ", ".join(f"{splits.get(split, 0)} in {split}" for split in ANNOTATED)
        advice = "Each split needs at least one: add masks, or assign images to splits in splits.csv."
        inspection.remarks.append(Remark(f"a random split of {masks} masks gives {shown}", advice))
    elif masks < FEW_MASKS:
        found_few = f"there are only {masks} masks"
        advice = "The test split will be tiny, so its numbers mean little; let pretraining use every image."
        inspection.remarks.append(Remark(found_few, advice))


def _write_section(inspection: Inspection, source: dict[str, Any], classes: dict[str, Any]) -> None:
    section = _section(source, group_pattern=inspection.group_pattern, **classes)
    if not _classes(inspection, section):
        inspection.remarks.append(
            Remark("it is unclear which values are classes", "Name them under `classes` in the section below.")
        )
    dataset_params(section)
    inspection.dataset = section
    if inspection.layout and inspection.layout.layout == "folder":
        _try_layout(inspection.layout._replace(source=source), inspection)  # again, with the right kind of masks
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


def _sheet(inspection: Inspection) -> bytes | None:
    files = inspection.listing.raw
    if inspection.layout and inspection.dataset:
        classes = _classes(inspection, inspection.dataset)
        samples = [RawSample(item.id, item.image, item.mask, "", None) for item in inspection.labeled]
        title = f"{files.root}: {inspection.layout.layout}, {len(inspection.images):,} images, {len(samples):,} masks"
    else:
        classes, samples = None, [RawSample(file.name, file.path, None, "", None) for file in inspection.listing.images]
        title = f"{files.root}: {len(samples):,} images, no masks found"
    return contact_sheet(samples, files, classes, title)
