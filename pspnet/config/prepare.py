"""`prepare`: how raw files become the prepared dataset."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import AtLeastOne, Positive, Section, Share

HeldOutShare = Annotated[float, Field(gt=0, lt=0.9)]


class PrepareParams(Section):
    val_share: HeldOutShare
    """Share of the groups that chooses the best epoch; unused where the data brings its own splits."""
    test_share: HeldOutShare
    """Share of the groups that is only measured on, once, at the end."""
    official_splits: Literal["kept", "val_is_test", "ignored"]
    """What becomes of splits that the data bring. `kept`: they are as named. `val_is_test`: their val is measured on,
    and a val of our own is part of their train; for sets whose test masks are not public. `ignored`: groups decide."""
    split_seed: int
    """Another number deals the groups to other splits."""
    tolerated_share: Share
    """Share of the files that may be refused before the stage stops."""
    max_megapixels: Positive
    """A larger image is refused before it is decoded."""
    shard_mb: AtLeastOne
    """Average size of a shard in megabytes (10^6 bytes)."""
