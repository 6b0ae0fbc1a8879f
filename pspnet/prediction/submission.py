"""Writes predicted masks with the file names and values that a public benchmark's server expects."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pspnet.dataset.store.pixels import decode_mask
from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_folder
from pspnet.prediction.output_folder import palette_image
from pspnet.raw.classes import first_few
from pspnet.raw.layouts import ade20k, cityscapes, voc


@dataclass(frozen=True)
class Benchmark:
    values: Mapping[str, int]  # class -> value in the submitted mask
    image_names: str  # pattern that image names match; its group becomes part of the mask's name
    mask_name: str  # name of the submitted mask, with {} in place of that group
    palette: NDArray[np.uint8] | None  # (256, 3); if None, masks are gray


BENCHMARKS = {
    # The benchmark's evaluation finds CITY_SEQUENCE_FRAME*.png in any folder.
    "cityscapes": Benchmark(cityscapes.LABEL_IDS, r"(.*)_leftImg8bit\.\w+", "{}_pred_labelIds.png", None),
    # The competition for networks that were also trained on other data.
    "voc": Benchmark(
        {name: value for value, name in enumerate(voc.NAMES)},
        r"(.*)\.\w+",
        "results/VOC2012/Segmentation/comp6_test_cls/{}.png",
        np.array([list(bytes.fromhex(voc.palette_color(index)[1:])) for index in range(256)], np.uint8),
    ),
    "ade20k": Benchmark(
        {name: value for value, name in enumerate(ade20k.NAMES, start=ade20k.NOT_ANNOTATED + 1)},
        r"(.*)\.\w+",
        "{}.png",
        None,
    ),
}


def mask_names(layout: str, images: Iterable[str], classes: tuple[str, ...], bundle: Path) -> dict[str, str]:
    """Image -> name of its submitted mask. Everything that prevents a submission is reported before predicting."""
    benchmark = BENCHMARKS[layout]
    problems = []
    if unknown := [name for name in classes if name not in benchmark.values]:
        found = f"has classes that {layout} lacks ({len(unknown):,}): {first_few(unknown)}"
        problems.append(Problem(str(bundle), found, f"names of {first_few(benchmark.values)}"))
    matches = {image: re.fullmatch(benchmark.image_names, image.rpartition("/")[2]) for image in images}
    if strange := [image for image, match in matches.items() if not match]:
        found = f"is not named like an image of {layout} (files: {len(strange):,})"
        problems.append(Problem(strange[0], found, f"names that match {benchmark.image_names}"))
    names = {image: benchmark.mask_name.format(match[1]) for image, match in matches.items() if match}
    owners: dict[str, str] = {}
    for image, name in names.items():
        if (other := owners.setdefault(name, image)) != image:
            problems.append(Problem(image, f"has the same submitted mask as {other}: {name}", "different names"))
            break
    if problems:
        raise UserError(problems)
    return names


def write(layout: str, masks: Path, names: Mapping[str, str], classes: tuple[str, ...], out: Path) -> None:
    """Write the submission. `names`: image -> name of its submitted mask. `masks`: folder with masks as IMAGE.png."""
    benchmark = BENCHMARKS[layout]
    values = np.array([benchmark.values[name] for name in classes], np.uint8)
    with whole_folder(out) as folder:
        for image, name in names.items():
            mask = values[decode_mask((masks / f"{image}.png").read_bytes())]
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            own = Image.fromarray(mask) if benchmark.palette is None else palette_image(mask, benchmark.palette)
            own.save(path)
