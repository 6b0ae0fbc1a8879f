"""Makes remarks on the findings: what the user should know, and what to do about it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pspnet.config.prepare import PrepareParams
from pspnet.dataset.store.splits import ANNOTATED, Split
from pspnet.inspection.findings import Inspection
from pspnet.inspection.meaning import Remark
from pspnet.inspection.sequences import Grouping, far_from_asked, split_folders
from pspnet.inspection.spelling import counted
from pspnet.inspection.split_lists import SplitList
from pspnet.raw.grouping import SPLITS_CSV
from pspnet.raw.layouts.pairs import SPLIT_FOLDERS

FEW_MASKS = 30
USUAL_MEGAPIXELS = 100  # prepare.max_megapixels of the recipes


def about_images(inspection: Inspection) -> None:
    facts, remarks = inspection.image_facts, inspection.remarks
    if facts.rotated:
        found = f"EXIF rotates {len(facts.rotated)} of {facts.looked_at} images, such as {facts.rotated[0]}"
        remarks.append(Remark(found, "Nothing to do: they are turned upright, together with masks of the stored size."))
    if facts.misnamed:
        count = f"{len(facts.misnamed)} of {facts.looked_at} images"
        found = f"{count} have a different format than their suffix says, such as {facts.misnamed[0]}"
        remarks.append(Remark(found, "Nothing to do: the format is read from the content."))
    if facts.unusable:
        path, why = next(iter(sorted(facts.unusable.items())))
        found = f"{len(facts.unusable)} of {facts.looked_at} images cannot be used: {path} {why}"
        remarks.append(Remark(found, "`prepare` lists them and leaves them out, or stops if there are too many."))
    pixels = {path: width * height / 10**6 for path, (width, height) in facts.stated.items()}
    if large := [path for path in pixels if pixels[path] > USUAL_MEGAPIXELS]:
        largest = max(large, key=lambda path: (pixels[path], path))
        most = f"the largest {pixels[largest]:,.0f}: {largest}"
        found = f"{_have(len(large), 'image')} more than {USUAL_MEGAPIXELS} megapixels by their headers, {most}"
        advice = "Cut them into tiles, or raise prepare.max_megapixels if there is enough memory."
        if largest not in facts.sizes:
            advice += " The largest was not decoded here, so its header may be wrong."
        remarks.append(Remark(found, advice))


def about_masks(inspection: Inspection) -> None:
    facts, remarks = inspection.mask_facts, inspection.remarks
    if facts.unusable:
        path, refused = next(iter(sorted(facts.unusable.items())))
        count = counted(len(facts.unusable), "mask")
        found = f"{count} cannot be used: {path} {refused.found}; expected {refused.expected}"
        remarks.append(Remark(found, refused.fix or "Export them again."))
    if facts.left_out:
        remarks.append(Remark(f"too large to open here: {counted(facts.left_out, 'mask')}", "`prepare` reads them."))
    rotated = {*inspection.image_facts.rotated}
    plain = [item for item in inspection.labeled if item.mask and item.image not in rotated]
    shapes = {item.mask.path: inspection.image_facts.stated.get(item.image) for item in plain if item.mask}
    differing = [mask for mask in facts.looked_at if shapes.get(mask.path) and mask.shape[::-1] != shapes[mask.path]]
    if differing:
        first = differing[0]
        size, image = shapes[first.path] or (0, 0), first.shape[::-1]
        found = (
            f"{len(differing)} of {counted(len(facts.looked_at), 'mask')} differ in size from their images: "
            f"{first.path} has {image[0]} x {image[1]} pixels, and its image has {size[0]} x {size[1]}"
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
        found = _described(best)
        advice = f"group_pattern {best.pattern} keeps each group in one split."
        if best.is_block:
            advice += " Where two blocks meet, neighbors can still be in different splits."
        inspection.remarks.append(Remark(f"{alike}; {found}" if alike else found, advice))
    elif alike:
        leak = "val" if official and official[0] == "val_is_test" else "val and test"
        advice = f"With group_pattern (.*), they leak from train into {leak}"
        if coarse:
            advice += f"; {coarse.pattern} gives {coarse.groups} groups by {coarse.meaning}, too few for a random split"
        inspection.remarks.append(Remark(alike, f"{advice}. Assign the parts to splits in splits.csv."))
    elif coarse:
        found = _described(coarse)
        advice = f"If the images in a group belong together (a scene, a patient), set group_pattern: {coarse.pattern}"
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
        shown = ", ".join(f"{folder} ({counted(count, 'image')})" for folder, count in folders.items())
        splits = {SPLIT_FOLDERS[folder.lower()] for folder in folders}
        if len(splits) > 1:
            plain = layout.source.get("image_names") == r"(.*)\.\w+"
            by_command = f"To keep them: {_from_folders(root, layout.source['images'], list(folders))}"
            advice = by_command if plain else _BY_HAND
            inspection.remarks.append(Remark(f"folders that may be official splits: {shown}", advice + _then(splits)))
    if lists := inspection.lists:
        shown = ", ".join(
            f"{one.file} ({_splits(one)}; {one.known:,} of {one.listed:,} names are images)" for one in lists
        )
        advice = f"To keep them: {_from_lists(root, lists)}" if all(one.lines for one in lists) else _BY_HAND
        named = {split for one in lists for split in one.splits}
        inspection.remarks.append(Remark(f"lists that may be official splits: {shown}", advice + _then(named)))


_BY_HAND = f"To keep them, write {SPLITS_CSV} with lines `id,split`; the parentheses in image_names capture the id."


def _described(grouping: Grouping) -> str:
    return f"{counted(grouping.groups, 'group')} by {grouping.meaning}, the largest with " + counted(
        grouping.largest, "image"
    )


def _have(count: int, noun: str) -> str:
    return f"{counted(count, noun)} {'has' if count == 1 else 'have'}"


def _splits(one: SplitList) -> str:
    return ", ".join(f"{count:,} in {split}" for split, count in sorted(one.splits.items()))


def about_shares(inspection: Inspection, splits: Counter[Split], asked: PrepareParams) -> None:
    """Remark on how a random split would divide the masks, if it would not be as requested."""
    count = len(inspection.labeled)
    official, remarks = inspection.prepare.get("official_splits"), inspection.remarks
    if not all(splits[split] for split in ANNOTATED):
        shown = ", ".join(f"{splits[split]} in {split}" for split in ANNOTATED)
        advice = "Each split needs at least one: add masks, or assign images to splits in splits.csv."
        remarks.append(Remark(f"a random split of {counted(count, 'mask')} gives {shown}", advice))
        return
    kept = official and official[0] != "ignored"
    if not kept and asked.split_by == "hash" and (shown := far_from_asked(splits, asked)):
        found = f"a random split with group_pattern {inspection.group_pattern} puts {shown}"
        advice = (
            "A hash assigns whole groups, so few or uneven groups cannot meet the shares. Set prepare.split_by: "
            "stratified, or assign groups to splits in splits.csv."
        )
        remarks.append(Remark(found, advice))
    if count < FEW_MASKS:
        advice = "The test split will be tiny, so its numbers mean little; let pretraining use every image."
        remarks.append(Remark(f"there are only {counted(count, 'mask')}", advice))


def about_other_files(inspection: Inspection, asked: PrepareParams) -> None:
    """Remark on files that `prepare` would count as unusable, if they are so many that it would stop."""
    others = [problem for problem in inspection.problems if problem.kind == "not_an_image"]
    found = len(inspection.images) + len(inspection.problems)
    if others and asked.problems.not_an_image != "allow" and len(others) > asked.tolerated_share * found:
        shown = (
            f"neither an image nor a mask under these params: {counted(len(others), 'file')}, such as {others[0].where}"
        )
        advice = "`prepare` would stop: move them out of the folder, or set prepare.problems.not_an_image: allow."
        inspection.remarks.append(Remark(shown, advice))
        inspection.prepare["problems.not_an_image"] = "allow", f"{counted(len(others), 'other file')} in the folder"


def _from_folders(root: Path, images: str, folders: Sequence[str]) -> str:
    lines = "; ".join(f"find {one} -type f | sed 's/\\.[^.]*$/,{SPLIT_FOLDERS[one.lower()]}/'" for one in folders)
    return f"(cd {root / images}; echo id,split; {lines}) > {root / SPLITS_CSV}"


def _from_lists(root: Path, lists: Sequence[SplitList]) -> str:
    lines = "; ".join(f"sed 's/$/,{one.lines}/' {root / one.file}" for one in lists)
    return f"(echo id,split; {lines}) > {root / SPLITS_CSV}"


def _then(splits: set[Split]) -> str:
    if {"train", "val", "test"} <= splits:
        return " (prepare.official_splits: kept)"
    if {"train", "val"} <= splits:
        return " and prepare.official_splits: val_is_test, because there is no test split."
    return " Then assign images to the missing splits too."
