"""`prepare`: how raw files become the prepared dataset."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import AtLeastOne, Positive, Section, Share

HeldOutShare = Annotated[float, Field(gt=0, lt=0.9)]


class ProblemsParams(Section):
    """What becomes of each kind of problem.

    `error`: the stage stops, after all have been found. `quarantine`: the image is left out, named in the report and
    counted against `tolerated_share`. `fix`: it is mended as said here, and named; what cannot be is quarantined.
    `allow`: it is used as it is, and named.
    """

    unreadable: Literal["error", "quarantine"]
    """Empty, cut off, broken, or of a kind that we do not read."""
    too_large: Literal["error", "quarantine"]
    """More pixels than max_megapixels."""
    wrong_suffix: Literal["error", "quarantine", "allow"]
    """A JPEG named .png, say; what is in the file counts."""
    not_an_image: Literal["error", "quarantine", "allow"]
    """A file in the folders of images and masks that is neither by its name. `allow`: it is left out and counted."""
    ambiguous: Literal["error", "quarantine"]
    """Two images of one id, or several masks for one image."""
    no_group: Literal["error", "quarantine"]
    """An id that dataset.group_pattern does not match."""
    mask_without_image: Literal["error", "quarantine", "allow"]
    """`allow`: it is left out and counted."""
    image_without_mask: Literal["error", "quarantine", "allow"]
    """`allow`: it is there for pretraining."""
    mask_size: Literal["error", "quarantine", "fix"]
    """A mask of another size than its image. `fix`: scaled by nearest neighbour, if the shape is the same."""
    mask_values: Literal["error", "quarantine", "fix"]
    """Values that no class has. `fix`: those pixels are ignored."""
    blurred_mask: Literal["error", "quarantine", "fix"]
    """Many values between those of the classes: scaled, or saved with loss. `fix`: each pixel gets the nearest."""
    empty_mask: Literal["error", "quarantine", "fix", "allow"]
    """A mask in which every pixel is ignored. `fix`: the image counts as one without mask."""
    duplicate: Literal["error", "quarantine", "allow"]
    """The same image twice, to the byte. `quarantine`: one is kept, first of all one with a mask, then that of test,
    val, train; the others are counted as duplicates and not against tolerated_share."""
    near_duplicate: Literal["error", "quarantine", "allow"]
    """Images in two splits that look the same at a glance: copies in another size or format, frames of a film.
    `quarantine`: the one in test, else in val, is kept, the other a duplicate."""
    contradicting_splits: Literal["error", "fix"]
    """A group in two official splits, or an id in two of their lists. `fix`: all of it goes to test, else to val."""
    absent_class: Literal["error", "allow"]
    """A class that no mask of a split shows."""


class PrepareParams(Section):
    val_share: HeldOutShare
    """Share of the groups that chooses the best epoch; unused where the data brings its own splits."""
    test_share: HeldOutShare
    """Share of the groups that is only measured on, once, at the end."""
    official_splits: Literal["kept", "val_is_test", "ignored"]
    """What becomes of splits that the data bring. `kept`: they are as named. `val_is_test`: their val is measured on,
    and a val of our own is part of their train; for sets whose test masks are not public. `ignored`: groups decide."""
    split_by: Literal["hash", "stratified"]
    """How groups are dealt. `hash`: each for itself, so that new data never move an old image. `stratified`: so that
    the shares are met and every split shows every class as far as possible; for small sets. New data may then move
    images from one split to another, and models are no longer compared on the same test split."""
    split_seed: int
    """Another number deals the groups to other splits."""
    tolerated_share: Share
    """Share of the files that may be quarantined before the stage stops."""
    max_megapixels: Positive
    """A larger image is refused before it is decoded."""
    shard_mb: AtLeastOne
    """Average size of a shard in megabytes (10^6 bytes)."""
    parts: AtLeastOne
    """Of how many parts the raw data are checked as, each by any machine of the pool; 1: where the stage runs."""
    problems: ProblemsParams
    """What becomes of each kind of problem with the raw data."""
