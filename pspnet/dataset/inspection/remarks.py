"""What a person should know of what was found, and can do about it."""

from collections.abc import Sequence
from pathlib import Path

from pspnet.dataset.adapters.pairs import SPLIT_FOLDERS
from pspnet.dataset.grouping import LISTED
from pspnet.dataset.inspection.findings import Inspection
from pspnet.dataset.inspection.meaning import Remark
from pspnet.dataset.inspection.sequences import Grouping, SplitList, split_folders
from pspnet.dataset.samples import Split

USUAL_MEGAPIXELS = 100  # prepare.max_megapixels of the recipes


def about_images(inspection: Inspection) -> None:
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
    pixels = {path: width * height / 10**6 for path, (width, height) in facts.stated.items()}
    if large := [path for path in pixels if pixels[path] > USUAL_MEGAPIXELS]:
        largest = max(large, key=lambda path: (pixels[path], path))
        most = f"at most {pixels[largest]:,.0f}: {largest}"
        found = f"{len(large)} images say that they have more than {USUAL_MEGAPIXELS} megapixels, {most}"
        advice = "Cut them into tiles, or raise prepare.max_megapixels if the memory is there."
        if largest not in facts.sizes:
            advice += " It was not decoded here, so its header may be wrong."
        remarks.append(Remark(found, advice))


def about_masks(inspection: Inspection) -> None:
    facts, remarks = inspection.masks, inspection.remarks
    if facts.unusable:
        path, refused = next(iter(sorted(facts.unusable.items())))
        found = f"{len(facts.unusable)} masks cannot be used: {path} {refused.found}; expected {refused.expected}"
        remarks.append(Remark(found, refused.fix or "Export them again."))
    if facts.left_out:
        remarks.append(Remark(f"{facts.left_out} masks are too large to be looked at here", "`prepare` reads them."))
    rotated = {*inspection.looked.rotated}
    plain = [item for item in inspection.labelled if item.mask and item.image not in rotated]
    shapes = {item.mask.path: inspection.looked.stated.get(item.image) for item in plain if item.mask}
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


def about_groups(inspection: Inspection, best: Grouping | None) -> None:
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


def about_splits(inspection: Inspection) -> None:
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
