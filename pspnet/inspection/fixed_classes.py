"""Checks for layouts with fixed class names whether the data really has these classes."""

import re
from collections.abc import Mapping, Sequence

from pspnet.raw.layouts.pairs import FoundImage

VOCS_NAME = re.compile(r"(?:200[7-9]|201[0-2])_\d{6}")
CITIES = {
    "aachen", "augsburg", "bad-honnef", "bamberg", "bayreuth", "berlin", "bielefeld", "bochum", "bonn", "bremen",
    "cologne", "darmstadt", "dortmund", "dresden", "duisburg", "dusseldorf", "erfurt", "erlangen", "frankfurt",
    "freiburg", "hamburg", "hanover", "heidelberg", "heilbronn", "jena", "karlsruhe", "konigswinter", "konstanz",
    "krefeld", "leverkusen", "lindau", "mainz", "mannheim", "monchengladbach", "muhlheim-ruhr", "munich", "munster",
    "nuremberg", "oberhausen", "saarbrucken", "schweinfurt", "strasbourg", "stuttgart", "troisdorf", "tubingen", "ulm",
    "weimar", "wuppertal", "wurzburg", "zurich",
}  # fmt: skip
OWNERS = {"voc": "PASCAL VOC", "cityscapes": "Cityscapes"}


def foreign_name(layout: str, images: Sequence[FoundImage]) -> str:
    """The first image whose name does not look like those in the layout's public dataset, or '' if there is none."""
    if layout == "voc":
        return next((item.image for item in images if not VOCS_NAME.fullmatch(item.id)), "")
    if layout == "cityscapes":
        return next((item.image for item in images if not {*item.id.lower().split("/")} & CITIES), "")
    return ""


def differ(names: Mapping[int, str], fixed: Mapping[int, str]) -> bool:
    """Whether a list of names next to the data gives any value a different name than the layout does."""
    return any(fixed.get(value, name).lower() != name.lower() for value, name in names.items())
