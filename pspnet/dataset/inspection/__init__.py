"""A look at a folder of raw data: which layout it seems to be, what is in it, and the params that fit it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pspnet.dataset.adapters import LAYOUTS
from pspnet.dataset.adapters.pairs import SPLIT_FOLDERS, Found
from pspnet.dataset.classes import Classes, Declared, declared_classes
from pspnet.dataset.grouping import LISTED
from pspnet.dataset.inspection.class_names import names_beside
from pspnet.dataset.inspection.listing import Listing, list_files
from pspnet.dataset.inspection.looking import (
    ImageFacts,
    MaskFacts,
    is_mask,
    look_at_images,
    look_at_masks,
    stable_sample,
)
from pspnet.dataset.inspection.meaning import MIDDLE, Remark, meaning
from pspnet.dataset.inspection.naming import candidates, is_derived, patterns
from pspnet.dataset.inspection.recognition import Recognised, recognised
from pspnet.dataset.inspection.section import as_yaml, dataset_params, source_section
from pspnet.dataset.inspection.sequences import (
    EVERY_IMAGE,
    Grouping,
    Neighbours,
    SplitList,
    chosen,
    compare_neighbours,
    dealt,
    groupings,
    official_splits,
    split_folders,
    split_lists,
)
from pspnet.dataset.inspection.sheet import contact_sheet
from pspnet.dataset.masks import COLOR, spelled
from pspnet.dataset.raw_samples import RawSample
from pspnet.dataset.samples import ANNOTATED, Split
from pspnet.errors import Problem, UserError

Tick = Callable[[int, int, str], None]

MOST_MASKS = 200
USUAL_MEGAPIXELS = 100  # prepare.max_megapixels of the recipes
FEW_MASKS = 30
IGNORED = "(ignored)"
STEPS = ("names", "layout", "images", "masks", "groups", "contact sheet")


@dataclass
class Inspection:
    listing: Listing
    layout: Recognised | None = None  # the one that the section is for
    others: list[Recognised] = field(default_factory=list)  # that it also looks like, or would, could it be read
    images: list[Found] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    looked: ImageFacts = field(default_factory=ImageFacts)
    masks: MaskFacts = field(default_factory=MaskFacts)
    values: pd.DataFrame | None = None
    class_names: dict[int, str] = field(default_factory=dict)  # by value
    neighbours: Neighbours | None = None
    groupings: list[Grouping] = field(default_factory=list)
    group_pattern: str = EVERY_IMAGE
    lists: list[SplitList] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    prepare: dict[str, tuple[Any, str]] = field(default_factory=dict)
    only_masks: bool = False
    sheet: bytes | None = None

    @property
    def labelled(self) -> list[Found]:
        return [item for item in self.images if item.mask]

    @property
    def missing(self) -> str:
        """Why there is no layout."""
        if not self.listing.images:
            return "no image, by the suffix of its name, and no annotation that is known"
        if self.only_masks:
            return "pictures that look like masks, and no images that they belong to"
        return (
            "images and no masks. That is enough for pretraining only: some images need masks to learn from, and some "
            "more to be measured on"
        )

    def class_name(self, value: int) -> str:
        """As the layout, a list beside the data or the section below names it."""
        if value in self.class_names:
            return self.class_names[value]
        classes = self.dataset["classes"] if self.dataset else {}
        ignored = self.dataset["ignore_values"] if self.dataset else []
        written = spelled(value).strip("'") if value >= COLOR else value
        return next((name for name, own in classes.items() if own == written), IGNORED if written in ignored else "")

    @property
    def section(self) -> str:
        return as_yaml(self.dataset, self.prepare) if self.dataset else ""


def inspect(folder: Path, tick: Tick, most_masks: int = MOST_MASKS) -> Inspection:
    def step(place: int) -> None:
        tick(place, len(STEPS), STEPS[place])

    step(0)
    inspection = Inspection(list_files(folder))
    step(1)
    _recognise(inspection)
    step(2)
    paths = [item.image for item in inspection.images] or [file.path for file in inspection.listing.images]
    inspection.looked = look_at_images(paths, inspection.listing.raw)
    _about_images(inspection)
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


def _recognise(inspection: Inspection) -> None:
    """A signature of its own says more than names that go together, which most layouts have too."""
    for guess in recognised(inspection.listing):
        tried = guess
        if guess.layout not in LAYOUTS:
            tried = guess._replace(obstacle=guess.obstacle or "this version cannot read that layout")
        elif not guess.obstacle and not inspection.layout:
            tried = _tried(guess, inspection)
        if tried.obstacle or inspection.layout:
            inspection.others.append(tried)
        else:
            inspection.layout = tried
    if not inspection.layout and not inspection.others:
        attempts = (_tried(guess, inspection) for guess in _pairs(inspection.listing))
        inspection.layout = next((tried for tried in attempts if not tried.obstacle), None)


def _pairs(listing: Listing) -> Iterator[Recognised]:
    files = {file.name: file.path for file in listing.images}
    names = [name for name in files if not is_derived(name)]
    for partners in candidates(names, lambda name: is_mask(files[name], listing.raw)):
        found = patterns(partners, names)
        kind = "instances" if partners.several else "numbers"
        source = {**found._asdict(), "mask_kind": kind, "mask_threshold": MIDDLE}
        yield Recognised("folder", "images and masks belong together by their names", source)


def _tried(guess: Recognised, inspection: Inspection) -> Recognised:
    """Read by its layout: the guess with what stood in the way, if anything did."""
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
        told = "; ".join(str(problem) for problem in problems[:3])
        return guess._replace(obstacle=f"no image has a mask that can be used{f': {told}' if told else ''}")
    inspection.images, inspection.problems = images, problems
    if guess.layout == "folder":
        first = inspection.labelled[0]
        return guess._replace(reason=f"names: {first.image} has the mask {first.mask.path}" if first.mask else "")
    return guess


def _section(source: dict[str, Any], **known: Any) -> dict[str, Any]:
    usual = {"classes": {}, "colors": {}, "ignore_values": [], "group_pattern": EVERY_IMAGE, "labelled_fraction": 1.0}
    return {"source": source, **usual, **known}


def _about_images(inspection: Inspection) -> None:
    facts, remarks = inspection.looked, inspection.remarks
    if facts.rotated:
        found = f"{len(facts.rotated)} of {facts.looked_at} images are turned by EXIF, such as {facts.rotated[0]}"
        remarks.append(Remark(found, "Nothing to do: they are made upright, and masks of the stored size with them."))
    if facts.misnamed:
        count = f"{len(facts.misnamed)} of {facts.looked_at} images"
        found = f"{count} are of another format than their suffix says, such as {facts.misnamed[0]}"
        remarks.append(Remark(found, "Nothing to do: the content counts."))
    if facts.unusable:
        path, why = next(iter(sorted(facts.unusable.items())))
        found = f"{len(facts.unusable)} of {facts.looked_at} images cannot be used: {path} {why}"
        remarks.append(Remark(found, "`prepare` names every one of them and leaves it out, or stops if they are many."))
    if large := [path for path, (w, h) in facts.sizes.items() if w * h > USUAL_MEGAPIXELS * 10**6]:
        most = max(facts.sizes[path][0] * facts.sizes[path][1] for path in large) / 10**6
        found = f"{len(large)} images have more than {USUAL_MEGAPIXELS} megapixels, at most {most:,.0f}: {min(large)}"
        remarks.append(Remark(found, "Cut them into tiles, or raise prepare.max_megapixels if the memory is there."))


def _masks(inspection: Inspection, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The source section, and what is to be said of classes."""
    layout = inspection.layout
    assert layout
    listing, labelled = inspection.listing, inspection.labelled
    masks = [item.mask for item in labelled if item.mask]
    if layout.layout != "folder":
        inspection.masks = look_at_masks(masks, listing.raw, True, most)
        inspection.values = inspection.masks.table("numbers")
        source = source_section(layout.layout, layout.source)
        _about_masks(inspection)
        _classes_of_layout(inspection, source)
        return source, {}
    inspection.masks = look_at_masks(masks, listing.raw, False, most)
    values = {value for look in inspection.masks.looked_at for value in look.values.tolist()}
    names, file = names_beside(listing, values)
    several = any(len(mask.paths) > 1 for mask in masks)
    found = meaning(inspection.masks, several, names)
    inspection.values, inspection.class_names = found.table, names
    inspection.remarks += found.remarks
    if names:
        inspection.remarks.append(Remark(f"{file} names the values", "The classes below have their names from it."))
    source = source_section("folder", {**layout.source, "mask_kind": found.kind, "mask_threshold": found.threshold})
    _about_masks(inspection)
    if (listing.raw.root / "classes.yaml").is_file():
        inspection.remarks.append(Remark("classes.yaml names the classes", "So the section below leaves them out."))
        return source, {}
    return source, {"classes": found.classes, "ignore_values": found.ignore_values}


def _about_masks(inspection: Inspection) -> None:
    facts, remarks = inspection.masks, inspection.remarks
    if facts.unusable:
        path, refused = next(iter(sorted(facts.unusable.items())))
        found = f"{len(facts.unusable)} masks cannot be used: {path} {refused.found}; expected {refused.expected}"
        remarks.append(Remark(found, refused.fix or "Export them again."))
    if facts.left_out:
        remarks.append(Remark(f"{facts.left_out} masks are too large to be looked at here", "`prepare` reads them."))
    rotated = {*inspection.looked.rotated}
    plain = [item for item in inspection.labelled if item.mask and item.image not in rotated]
    shapes = {item.mask.path: inspection.looked.sizes.get(item.image) for item in plain if item.mask}
    differing = [look for look in facts.looked_at if shapes.get(look.path) and look.shape[::-1] != shapes[look.path]]
    if differing:
        first = differing[0]
        size, image = shapes[first.path] or (0, 0), first.shape[::-1]
        found = (
            f"{len(differing)} of {len(facts.looked_at)} masks have another size than their image: {first.path} "
            f"has {image[0]} x {image[1]} pixels, its image {size[0]} x {size[1]}"
        )
        advice = "Export them at the size of the images; if they must be scaled, by nearest neighbour."
        remarks.append(Remark(found, advice))


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
            f"{listed} ({unknown['share'].sum():.1%} of the pixels) is none of the {len(classes.names)} classes of "
            f"layout {source['layout']}"
        )
        advice = "`prepare` refuses masks with unknown values: name the classes and ignore_values yourself."
        inspection.remarks.append(Remark(found, advice))


def _groups(inspection: Inspection) -> None:
    found, ids = inspection.images, [item.id for item in inspection.images]
    inspection.groupings = groupings(ids)
    inspection.neighbours = compare_neighbours(found, inspection.listing.raw)
    inspection.lists = split_lists(inspection.listing, {*ids})
    official = official_splits(found)
    if official:
        inspection.prepare["official_splits"] = official
    mode = official[0] if official else "kept"
    best = chosen(inspection.groupings, found, inspection.neighbours, mode)
    inspection.group_pattern = best.pattern if best else EVERY_IMAGE
    _about_groups(inspection, best)
    _about_splits(inspection)
    masks = len(inspection.labelled)
    splits = dealt(found, inspection.group_pattern, mode)
    if not all(splits.get(split) for split in ANNOTATED):
        told = ", ".join(f"{splits.get(split, 0)} in {split}" for split in ANNOTATED)
        advice = "Each needs one: add masks, or say in splits.csv which image goes where."
        inspection.remarks.append(Remark(f"dealt by chance, {masks} masks give {told}", advice))
    elif masks < FEW_MASKS:
        found_few = f"there are {masks} masks only"
        advice = "The test split will be a handful: believe its numbers little, and let pretraining use every image."
        inspection.remarks.append(Remark(found_few, advice))


def _about_groups(inspection: Inspection, best: Grouping | None) -> None:
    neighbours, official = inspection.neighbours, inspection.prepare.get("official_splits")
    alike = ""
    coarse = next((grouping for grouping in inspection.groupings if not grouping.is_block), None)
    if neighbours and neighbours.alike:
        alike = (
            "images that follow each other by number look alike (correlation of "
            f"{neighbours.compared} pairs {neighbours.following:.2f}, of images far apart {neighbours.any_two:.2f})"
        )
    if best:
        found = f"{best.groups:,} groups by {best.meaning}, the largest of {best.largest:,} images"
        advice = f"group_pattern {best.pattern} keeps a group on one side of the splits."
        if best.is_block:
            advice += " Where two blocks meet, neighbours still are on two sides."
        inspection.remarks.append(Remark(f"{alike}; {found}" if alike else found, advice))
    elif alike:
        leak = "val" if official and official[0] == "val_is_test" else "val and test"
        advice = f"With group_pattern (.*) they leak from train into {leak}"
        if coarse:
            advice += (
                f"; {coarse.pattern} gives {coarse.groups} groups by {coarse.meaning}, too few to be dealt by chance"
            )
        inspection.remarks.append(Remark(alike, f"{advice}. Say in splits.csv which parts go where."))
    elif coarse:
        found = f"{coarse.groups:,} groups by {coarse.meaning}, the largest of {coarse.largest:,} images"
        advice = f"If those belong together (a scene, a patient), set group_pattern: {coarse.pattern}"
        inspection.remarks.append(Remark(found, advice))


def _about_splits(inspection: Inspection) -> None:
    if (inspection.listing.raw.root / LISTED).is_file():
        inspection.remarks.append(Remark(f"{LISTED} says which image goes where", "It counts before all else."))
        return
    if any(item.split for item in inspection.images):
        return
    ids = [item.id for item in inspection.images]
    root = inspection.listing.raw.root
    layout = inspection.layout
    assert layout
    if folders := split_folders(ids):
        told = ", ".join(f"{folder} ({count:,} images)" for folder, count in folders.items())
        splits = {SPLIT_FOLDERS[folder.lower()] for folder in folders}
        if len(splits) > 1:
            plain = layout.source.get("image_names") == r"(.*)\.\w+"
            by_command = f"To keep them: {_from_folders(root, layout.source['images'], list(folders))}"
            advice = by_command if plain else _BY_HAND
            inspection.remarks.append(Remark(f"folders that may be official splits: {told}", advice + _then(splits)))
    elif lists := inspection.lists:
        told = ", ".join(f"{one.file} ({one.known:,} of {one.listed:,} names are images)" for one in lists)
        exactly = all(one.exactly for one in lists)
        advice = f"To keep them: {_from_lists(root, lists)}" if exactly else _BY_HAND
        splits = {one.split for one in lists}
        inspection.remarks.append(Remark(f"lists that may be official splits: {told}", advice + _then(splits)))


_BY_HAND = f"To keep them, write {LISTED} with lines `id,split`: an id is what the parentheses of image_names match."


def _from_folders(root: Path, images: str, folders: Sequence[str]) -> str:
    lines = "; ".join(f"find {one} -type f | sed 's/\\.[^.]*$/,{SPLIT_FOLDERS[one.lower()]}/'" for one in folders)
    return f"(cd {root / images}; echo id,split; {lines}) > {root / LISTED}"


def _from_lists(root: Path, lists: Sequence[SplitList]) -> str:
    lines = "; ".join(f"sed 's/$/,{one.split}/' {root / one.file}" for one in lists)
    return f"(echo id,split; {lines}) > {root / LISTED}"


def _then(splits: set[Split]) -> str:
    if {"train", "val", "test"} <= splits:
        return " (prepare.official_splits: kept)"
    if {"train", "val"} <= splits:
        return " and prepare.official_splits: val_is_test, since there is no test."
    return " Then name images for the splits that are missing, too."


def _write_section(inspection: Inspection, source: dict[str, Any], classes: dict[str, Any]) -> None:
    section = _section(source, group_pattern=inspection.group_pattern, **classes)
    if not _classes(inspection, section):
        inspection.remarks.append(
            Remark("which values are classes cannot be told", "Name them under `classes` in the section below.")
        )
    dataset_params(section)
    inspection.dataset = section
    if inspection.layout and inspection.layout.layout == "folder":
        _tried(inspection.layout._replace(source=source), inspection)  # now with masks of the right kind
    most = max((w * h for w, h in inspection.looked.sizes.values()), default=0)
    if most > USUAL_MEGAPIXELS * 10**6:
        inspection.prepare["max_megapixels"] = (-(-most // 10**6), "the largest image that was looked at")


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
        samples = [RawSample(item.id, item.image, item.mask, "", None) for item in inspection.labelled]
        title = f"{files.root}: {inspection.layout.layout}, {len(inspection.images):,} images, {len(samples):,} masks"
    else:
        classes, samples = None, [RawSample(file.name, file.path, None, "", None) for file in inspection.listing.images]
        title = f"{files.root}: {len(samples):,} images, no masks found"
    return contact_sheet(samples, files, classes, title)
