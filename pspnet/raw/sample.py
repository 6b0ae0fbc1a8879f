"""A sample before it has been checked."""

from dataclasses import dataclass

from pspnet.dataset.store.splits import Split
from pspnet.raw.masks import RawMask


@dataclass(frozen=True, slots=True)
class RawSample:
    """Paths are relative to the raw folder, with forward slashes."""

    id: str
    image: str
    mask: RawMask | None
    group: str
    split: Split | None  # the official split, if the layout or splits.csv specifies it

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file that is read for this sample."""
        return (self.image, *(self.mask.paths if self.mask else ()))
