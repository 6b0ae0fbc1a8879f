"""The labels in annotations, and their numbers in the masks drawn from them."""

from collections.abc import Iterable, Mapping

from pspnet.errors import Problem, UserError
from pspnet.printable import UNPRINTABLE
from pspnet.raw.classes import Declared, first_few
from pspnet.raw.images import Refused

BACKGROUND = 0
IGNORED = 65535
BACKGROUND_LABEL = "background"


class Labels:
    """The labels of a dataset, numbered. `_background_`, in any spelling, is 0, as is every pixel without a shape;
    `__ignore__` is not annotated.
    """

    def __init__(
        self,
        names: Iterable[str],
        colors: Mapping[str, list[int]] | None = None,
        *,
        without_background: bool = False,
    ) -> None:
        labels = list(dict.fromkeys(map(_plain, names)))
        own = [label for label in labels if label not in ("", BACKGROUND_LABEL, "__ignore__")]
        if unwritable := [label for label in labels if UNPRINTABLE.search(label)]:
            raise UserError(Problem("the annotations", f"have the label {unwritable[0]!r:.60}", "one line of text"))
        if len(own) >= IGNORED:
            raise UserError(Problem("the annotations", f"have {len(own):,} labels", f"fewer than {IGNORED:,}"))
        first = [] if without_background and BACKGROUND_LABEL not in labels else [BACKGROUND_LABEL]
        self._numbers = {label: number for number, label in enumerate([*first, *own], start=1 - len(first))}
        self._colors = {_plain(name): color for name, color in (colors or {}).items()}

    def number(self, label: str) -> int:
        label = _plain(label)
        if label == "__ignore__":
            return IGNORED
        if label not in self._numbers:
            raise Refused(f"has label {label!r:.60}", f"one of {first_few(self._numbers)}")
        return self._numbers[label]

    def declared(self) -> Declared:
        colors = {label: color for label, color in self._colors.items() if label in self._numbers}
        return Declared(self._numbers, colors, [IGNORED], by_label=True)


def _plain(label: str) -> str:
    label = label.strip()
    return BACKGROUND_LABEL if label.strip("_").lower() == BACKGROUND_LABEL else label
