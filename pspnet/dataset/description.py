"""The prepared dataset in words and tables, for people: report.md."""

from collections.abc import Iterable

from pspnet.dataset.prepared import PreparedDataset
from pspnet.dataset.samples import SPLITS

MOST_SIZES = 10


def describe(dataset: PreparedDataset) -> str:
    images = sum(dataset.images.values())
    found = images + len(dataset.refused)
    splits = [
        (split, f"{dataset.images[split]:,}", f"{dataset.masks[split]:,}", f"{dataset.groups[split]:,}")
        for split in SPLITS
    ]
    parts = [
        "# Prepared dataset",
        f"{found:,} found: {images:,} prepared, {len(dataset.refused):,} refused. `{dataset.fingerprint[:12]}`",
        "## Splits",
        _table(["split", "images", "masks", "groups with masks"], splits),
        "## Share of the mask pixels",
        _table(["class", "train", "val", "test"], _class_shares(dataset)),
        *_warnings(dataset),
        "## Image sizes",
        _table(["width x height", "images"], _sizes(dataset)),
    ]
    if dataset.refused:
        parts += ["## Refused files", _table(["file", "reason"], dataset.refused)]
    return "\n\n".join(parts) + "\n"


def _class_shares(dataset: PreparedDataset) -> Iterable[tuple[str, ...]]:
    counts = {
        split: [*dataset.class_pixels[split], dataset.ignored_pixels[split]] for split in ("train", "val", "test")
    }
    for place, name in enumerate([*dataset.classes, "(ignored)"]):
        yield name, *(f"{own[place] / sum(own):.2%}" for own in counts.values())


def _warnings(dataset: PreparedDataset) -> Iterable[str]:
    for split in ("train", "val", "test"):
        if absent := [n for n, p in zip(dataset.classes, dataset.class_pixels[split], strict=True) if not p]:
            yield f"**No mask in {split} shows: {', '.join(absent)}.**"


def _sizes(dataset: PreparedDataset) -> Iterable[tuple[str, ...]]:
    counts = dataset.index().groupby(["width", "height"]).size().sort_values(ascending=False, kind="stable")
    for (width, height), count in counts.head(MOST_SIZES).items():
        yield f"{width} x {height}", f"{count:,}"
    if len(counts) > MOST_SIZES:
        yield f"{len(counts) - MOST_SIZES:,} other sizes", f"{counts.iloc[MOST_SIZES:].sum():,}"


def _table(head: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells))
