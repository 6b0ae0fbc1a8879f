"""Layout `class_folders`: one mask per class of an image, in a folder named after the class.

raw/images/0001.jpg      raw/masks/scratch/0001.png           raw/masks/dent/0001.png
raw/test/broken/000.png  raw/ground_truth/broken/000_mask.png raw/train/good/000.png   as in MVTec AD
raw/benign/1.png         raw/benign/1_mask.png                raw/benign/1_mask_1.png  a second mask of the image
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from pspnet.config.dataset import ClassFoldersParams
from pspnet.errors import Problem
from pspnet.raw.classes import Declared
from pspnet.raw.files import RawFile, RawFiles
from pspnet.raw.layouts.annotations import split_of_folders
from pspnet.raw.layouts.labels import BACKGROUND, BACKGROUND_LABEL, Labels
from pspnet.raw.layouts.pairs import FoundImage, Naming, pairs
from pspnet.raw.masks import ClassMasks, RawMask
from pspnet.raw.shapes import Drawing


def find(source: ClassFoldersParams, raw: RawFiles) -> Iterator[FoundImage | Problem]:
    folders = _folders(source, raw)
    labels = _labels(source, folders)

    def mask(paths: list[str]) -> RawMask:
        numbered = sorted((labels.number(folders[path]), path) for path in paths)
        return ClassMasks(tuple(numbered), source.mask_threshold)

    for found in pairs(_naming(source), raw, mask, lambda _: None):
        yield found if isinstance(found, Problem) or found.problem else _completed(found, source)


def classes(source: ClassFoldersParams, raw: RawFiles) -> Declared:
    return _labels(source, _folders(source, raw)).declared()


def _naming(source: ClassFoldersParams) -> Naming:
    # A number after a suffix marks an additional mask. Without a suffix, it is part of the id.
    suffix = re.escape(source.mask_suffix) + r"(?:[_\- .]?\d+)?" * bool(source.mask_suffix)
    no_masks = "|".join(map(re.escape, source.background_folders)) or "(?!)"
    if source.paired_by == "id":
        images, masks = r"(.*)\.\w+", rf"[^/]+/(.*){suffix}\.\w+"
    else:  # images without masks need no pairing, and several `good` folders can contain the same names
        images = rf"(?:(?=(?:.*/)?(?:{no_masks})/)|(?:.*/)?(?=[^/]+/[^/]+$))(.*)\.\w+"
        masks = rf"([^/]+/[^/]+){suffix}\.\w+"
    return Naming(source.images, source.masks, images, masks, other_names=r".*\.(txt|md)", several_masks=True)


def _completed(found: FoundImage, source: ClassFoldersParams) -> FoundImage:
    mask = found.mask
    paths = mask.paths if isinstance(mask, ClassMasks) else ()
    if len({str(PurePosixPath(path).with_suffix("")) for path in paths}) < len(paths):
        reason = f"has several masks of one class: {', '.join(paths)}"
        problem = Problem(found.image, reason, "one mask per class", "Remove all but one.", "ambiguous")
        return found._replace(mask=None, problem=problem)
    if mask is None and {*PurePosixPath(found.image).parent.parts} & {*source.background_folders}:
        mask = Drawing(found.image, None, BACKGROUND, (), found.image)
    return found._replace(mask=mask, split=split_of_folders(found.image))


def _folders(source: ClassFoldersParams, raw: RawFiles) -> dict[str, str]:
    """Return a mask's class folder, or `background` for a folder of images that show no class."""
    names, root = re.compile(_naming(source).mask_names), PurePosixPath(source.masks)
    files = [file for file in raw.below(source.masks) if isinstance(file, RawFile)]
    inner = {file.path: PurePosixPath(file.name).relative_to(root) for file in files}
    own = {path: name.parts[0] for path, name in inner.items() if names.fullmatch(str(name))}
    return {path: BACKGROUND_LABEL if name in source.background_folders else name for path, name in own.items()}


def _labels(source: ClassFoldersParams, folders: dict[str, str]) -> Labels:
    return Labels(sorted(set(folders.values())))
