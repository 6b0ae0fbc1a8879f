"""Remarks on the findings: what a person should know, and what to do about it."""

from collections.abc import Sequence
from pathlib import Path

from pspnet.dataset.store.splits import Split
from pspnet.inspection.findings import Inspection
from pspnet.inspection.meaning import Remark
from pspnet.inspection.sequences import Grouping, SplitList, split_folders
from pspnet.raw.grouping import SPLITS_CSV
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS

USUAL_MEGAPIXELS = 100  # prepare.max_megapixels of the recipes


def about_images(inspection: Inspection) -> None:
    facts, remarks = inspection.image_facts, inspection.remarks
    if facts.rotated:
        found = f"EXIF turns {len(facts.rotated)} of {facts.looked_at} images, such as {facts.rotated[0]}"
        remarks.append(
            Remark(found, "Nothing to do: they become upright, and masks of the stored size turn with them.")
        )
    if facts.misnamed:
        count = f"{len(facts.misnamed)} of {facts.looked_at} images"
        found = f"{count} have another format than their suffix says, such as {facts.misnamed[0]}"
        remarks.append(Remark(found, "Nothing to do: the content counts."))
    if facts.unusable:
        path, why = next(iter(sorted(facts.unusable.items())))
        found = f"{len(facts.unusable)} of {facts.looked_at} images cannot be used: {path} {why}"
        remarks.append(Remark(found, "`prepare` names them and leaves them out, or stops if there are too many."))
    pixels = {path: width * height / 10**6 for path, (width, height) in facts.stated.items()}
    if large := [path for path in pixels if pixels[path] > USUAL_MEGAPIXELS]:
        largest = max(large, key=lambda path: (pixels[path], path))
        most = f"the largest {pixels[largest]:,.0f}: {largest}"
        found = f"{len(large)} images have more than {USUAL_MEGAPIXELS} megapixels by their headers, {most}"
        advice = "Cut them into tiles, or raise prepare.max_megapixels if there is enough memory."
        if largest not in facts.sizes:
            advice += " The largest was not decoded here, so its header may be wrong."
        remarks.append(Remark(found, advice))


def about_masks(inspection: Inspection) -> None:
    facts, remarks = inspection.mask_facts, inspection.remarks
    if facts.unusable:
        path, refused = next(iter(sorted(facts.unusable.items())))
        found = f"{len(facts.unusable)} masks cannot be used: {path} {refused.found}; expected {refused.expected}"
        remarks.append(Remark(found, refused.fix or "Export them again."))
    if facts.left_out:
        remarks.append(Remark(f"{facts.left_out} masks are too large to open here", "`prepare` reads them."))
    rotated = {*inspection.image_facts.rotated}
    plain = [item for item in inspection.labeled if item.mask and item.image not in rotated]
    shapes = {item.mask.path: inspection.image_facts.stated.get(item.image) for item in plain if item.mask}
    differing = [mask for mask in facts.looked_at if shapes.get(mask.path) and mask.shape[::-1] != shapes[mask.path]]
    if differing:
        first = differing[0]
        size, image = shapes[first.path] or (0, 0), first.shape[::-1]
        found = (
            f"{len(differing)} of {len(facts.looked_at)} masks differ in size from their images: {first.path} "
            f"has {image[0]} x {image[1]} pixels, its image {size[0]} x {size[1]}"
        )
        advice = "Export them at the size of the images; if you must scale them, use nearest neighbor."
        remarks.append(Remark(found, advice))


def about_groups(inspection: Inspection, best: Grouping | None) -> None:
    neighbors, official = inspection.neighbors, inspection.prepare.get("official_splits")
    alike = ""
    coarse = next((grouping for grouping in inspection.groupings if not grouping.is_block), None)
    if neighbors and neighbors.alike:
        alike = (
            f"images with consecutive numbers look alike (correlation {neighbors.following:.2f} over "
            f"{neighbors.compared} pairs, {neighbors.any_two:.2f} for images far apart)"
        )
    if best:
        found = f"{best.groups:,} groups by {best.meaning}, the largest with {best.largest:,} images"
        advice = f"group_pattern {best.pattern} keeps each group in one split."
        if best.is_block:
            advice += " At the border of two blocks, neighbors can still be in different splits."
        inspection.remarks.append(Remark(f"{alike}; {found}" if alike else found, advice))
    elif alike:
        leak = "val" if official and official[0] == "val_is_test" else "val and test"
        advice = f"With group_pattern (.*), they leak from train into {leak}"
        if coarse:
            advice += f"; {coarse.pattern} gives {coarse.groups} groups by {coarse.meaning}, too few for a random split"
        inspection.remarks.append(Remark(alike, f"{advice}. Assign the parts to splits in splits.csv."))
    elif coarse:
        found = f"{coarse.groups:,} groups by {coarse.meaning}, the largest with {coarse.largest:,} images"
        advice = f"If the images of a group belong together (a scene, a patient), set group_pattern: {coarse.pattern}"
        inspection.remarks.append(Remark(found, advice))


def about_splits(inspection: Inspection) -> None:
    if (inspection.listing.raw.root / SPLITS_CSV).is_file():
        inspection.remarks.append(Remark(f"{SPLITS_CSV} assigns images to splits", "It overrides everything else."))
        return
    if any(item.split for item in inspection.images):
        return
    ids = [item.id for item in inspection.images]
    root = inspection.listing.raw.root
    layout = inspection.layout
    assert layout
    if folders := split_folders(ids):
        shown = ", ".join(f"{folder} ({count:,} images)" for folder, count in folders.items())
        splits = {SPLIT_FOLDERS[folder.lower()] for folder in folders}
        if len(splits) > 1:
            plain = layout.source.get("image_names") == r"(.*)\.\w+"
            by_command = f"To keep them: {_from_folders(root, layout.source['images'], list(folders))}"
            advice = by_command if plain else _BY_HAND
            inspection.remarks.append(Remark(f"folders that may be official splits: {shown}", advice + _then(splits)))
    elif lists := inspection.lists:
        shown = ", ".join(f"{one.file} ({one.known:,} of {one.listed:,} names are images)" for one in lists)
        exactly = all(one.exactly for one in lists)
        advice = f"To keep them: {_from_lists(root, lists)}" if exactly else _BY_HAND
        splits = {one.split for one in lists}
        inspection.remarks.append(Remark(f"lists that may be official splits: {shown}", advice + _then(splits)))


_BY_HAND = f"To keep them, write {SPLITS_CSV} with lines `id,split`; the parentheses in image_names capture the id."


def _from_folders(root: Path, images: str, folders: Sequence[str]) -> str:
    lines = "; ".join(f"find {one} -type f | sed 's/\\.[^.]*$/,{SPLIT_FOLDERS[one.lower()]}/'" for one in folders)
    return f"(cd {root / images}; echo id,split; {lines}) > {root / SPLITS_CSV}"


def _from_lists(root: Path, lists: Sequence[SplitList]) -> str:
    lines = "; ".join(f"sed 's/$/,{one.split}/' {root / one.file}" for one in lists)
    return f"(echo id,split; {lines}) > {root / SPLITS_CSV}"


def _then(splits: set[Split]) -> str:
    if {"train", "val", "test"} <= splits:
        return " (prepare.official_splits: kept)"
    if {"train", "val"} <= splits:
        return " and prepare.official_splits: val_is_test, since there is no test."
    return " Then assign images to the missing splits too."
