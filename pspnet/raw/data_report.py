"""Write the data report: data_report.html and problems.csv show what the prepared dataset contains and what was wrong
with the raw data. The same dataset always produces the same bytes.
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.dataset.store.splits import ANNOTATED, SPLITS, Split, stable_uniform
from pspnet.errors import Problem
from pspnet.raw.files import RawFiles
from pspnet.raw.images import Refused, decoded, limited_pillow, to_rgb
from pspnet.raw.problems import NO_FILES, Verdict, in_order, write_problems
from pspnet.raw.validation import Rules

MOST_SHOWN, MOST_SIZES, MOST_EXAMPLES, MOST_BAD = 200, 12, 18, 12
PICTURE_PX = 240
NO_PICTURES = ("unreadable", "too_large", "not_an_image")  # problems of these kinds have files that cannot be displayed

Picture = dict[str, Any]


def absent_classes(dataset: PreparedDataset) -> list[Problem]:
    """Return a problem for each split with a class that appears in none of its masks."""
    problems = []
    for split in ANNOTATED:
        pairs = zip(dataset.classes, dataset.class_pixels[split], strict=True)
        if absent := [name for name, pixels in pairs if not pixels]:
            fix = "Add masks that show it, or set prepare.split_by: stratified."
            found = f"no mask shows {', '.join(absent)}"
            problems.append(Problem(f"split '{split}'", found, "every class in every split", fix, "absent_class"))
    return problems


def write_data_report(
    dataset: PreparedDataset, verdicts: Sequence[Verdict], repeated: Mapping[Split, int], files: RawFiles, rules: Rules,
    folder: Path,
) -> None:  # fmt: skip
    write_problems(folder / "problems.csv", verdicts)
    page = _page(dataset, in_order(verdicts), repeated, files, rules)
    (folder / "data_report.html").write_text(page, encoding="utf-8")


def _page(
    dataset: PreparedDataset, verdicts: Sequence[Verdict], repeated: Mapping[Split, int], files: RawFiles, rules: Rules
) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": "{:,}".format, "share": _share}
    template = environment.from_string(Path(__file__).with_name("data_report.html.j2").read_text(encoding="utf-8"))
    index = dataset.index()
    return template.render(
        dataset=dataset,
        splits=SPLITS,
        annotated=ANNOTATED,
        repeated=repeated,
        classes=list(_class_shares(dataset)),
        sizes=list(_sizes(index)),
        kinds=Counter((one.outcome, one.problem.kind) for one in verdicts).most_common(),
        verdicts=_each_kind_first(verdicts),
        examples=list(_examples(dataset, index)),
        bad=list(_bad(verdicts, files, rules)),
    )


def _class_shares(dataset: PreparedDataset) -> Iterable[dict[str, Any]]:
    counts = {split: [*dataset.class_pixels[split], dataset.ignored_pixels[split]] for split in ANNOTATED}
    colors = [*dataset.colors, (128, 128, 128)]
    for place, (name, color) in enumerate(zip([*dataset.classes, "(ignored)"], colors, strict=True)):
        shares = {split: own[place] / max(sum(own), 1) for split, own in counts.items()}
        yield {"name": name, "color": color, "shares": shares}


def _sizes(index: pd.DataFrame) -> Iterable[tuple[str, int]]:
    counts = index.groupby(["width", "height"]).size().sort_values(ascending=False, kind="stable")
    for (width, height), count in counts.head(MOST_SIZES).items():
        yield f"{width} × {height}", int(count)
    if len(counts) > MOST_SIZES:
        yield f"{len(counts) - MOST_SIZES:,} other sizes", int(counts.iloc[MOST_SIZES:].sum())


def _each_kind_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return at most MOST_SHOWN verdicts, taking turns between kinds so that no kind crowds out the others."""
    turn: Counter[tuple[str, str]] = Counter()
    ranked = []
    for one in verdicts:
        kind = (one.outcome, one.problem.kind)
        turn[kind] += 1
        ranked.append((turn[kind], one))
    shown = sorted(ranked, key=lambda pair: pair[0])[:MOST_SHOWN]
    return in_order(one for _, one in shown)


def _examples(dataset: PreparedDataset, index: pd.DataFrame) -> Iterable[Picture]:
    """Yield a few images with their masks from each split. The same data always yields the same images."""
    reader = dataset.reader()
    for split in ANNOTATED:
        own = index[index["has_mask"] & (index["split"] == split)]
        chosen = sorted(own["id"], key=stable_uniform)[: MOST_EXAMPLES // len(ANNOTATED)]
        for name, shard, row in own[own["id"].isin(chosen)][["id", "shard", "row"]].itertuples(index=False):
            image, mask = reader.image(shard, row), reader.mask(shard, row)
            yield {
                "name": name,
                "split": split,
                "image": _data_url(Image.fromarray(image)),
                "mask": _data_url(Image.fromarray(_colored(mask, dataset)), Image.Resampling.NEAREST),
                "classes": [
                    (dataset.classes[k], dataset.colors[k]) for k in np.unique(mask) if k < len(dataset.classes)
                ],
            }


def _colored(mask: NDArray[np.uint8], dataset: PreparedDataset) -> NDArray[np.uint8]:
    table = np.full((256, 3), 128, np.uint8)
    table[: len(dataset.colors)] = dataset.colors
    return table[mask]


def _bad(verdicts: Sequence[Verdict], files: RawFiles, rules: Rules) -> Iterable[Picture]:
    """Yield pictures of the problem files that can still be displayed."""
    shown = 0
    for one in _each_kind_first(verdicts):
        if shown == MOST_BAD or one.problem.kind in (*NO_PICTURES, *NO_FILES):
            continue
        try:
            data = files.read(one.problem.where, rules.max_bytes)
            with limited_pillow(rules.max_pixels):
                image = _visible(decoded(data, rules.max_pixels)[0])
        except (Refused, OSError, ValueError, MemoryError):
            continue
        shown += 1
        is_mask = "mask" in one.problem.kind
        yield {"verdict": one, "image": _data_url(image, *([Image.Resampling.NEAREST] if is_mask else []))}


def _visible(image: Image.Image) -> Image.Image:
    """Return the image in RGB. Class numbers, which would look nearly black, are stretched to gray levels."""
    if image.mode in ("L", "I;16"):
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray((values / max(values.max(), 1) * 255).astype(np.uint8))
    return to_rgb(image)


def _data_url(image: Image.Image, resampling: Image.Resampling = Image.Resampling.BOX) -> str:
    scale = min(1.0, PICTURE_PX / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = BytesIO()
    if resampling is Image.Resampling.NEAREST:
        image.convert("RGB").resize(size, resampling).save(buffer, "PNG")
        return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
    image.convert("RGB").resize(size, resampling).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()


def _share(value: float) -> str:
    return "–" if value == 0 else "< 0.1 %" if value < 0.001 else f"{value:.1%}".replace("%", " %")
