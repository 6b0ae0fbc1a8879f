"""A sample as a layout finds it."""

from dataclasses import dataclass

from pspnet.dataset.masks import RawMask
from pspnet.dataset.samples import Split


@dataclass(frozen=True, slots=True)
class RawSample:
    """Paths are relative to the raw folder, with forward slashes."""

    id: str
    image: str
    mask: RawMask | None
    group: str
    split: Split | None  # where the layout itself says so

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file it is read from."""
        return (self.image, *(self.mask.paths if self.mask else ()))
