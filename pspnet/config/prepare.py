"""`prepare`: how raw files become the prepared dataset."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import AtLeastOne, Positive, Section, Share

HeldOutShare = Annotated[float, Field(gt=0, lt=0.9)]


class ProblemsParams(Section):
    """What to do about each kind of problem.

    `error`: stop the stage once all problems are found. `quarantine`: leave the image out, name it in the report and
    count it against `tolerated_share`. `fix`: repair it as described here and name it, or quarantine it if that fails.
    `allow`: use it as it is, and name it.
    """

    unreadable: Literal["error", "quarantine"]
    """A file that is empty, truncated, broken or of an unsupported kind."""
    too_large: Literal["error", "quarantine"]
    """An image with more than max_megapixels."""
    wrong_suffix: Literal["error", "quarantine", "allow"]
    """A JPEG named .png, for example; its content decides."""
    not_an_image: Literal["error", "quarantine", "allow"]
    """A file in the image or mask folder whose name matches neither kind. `allow`: leave it out and count it."""
    ambiguous: Literal["error", "quarantine"]
    """Two images with one id, or several masks for one image."""
    no_group: Literal["error", "quarantine"]
    """An id in which dataset.group_pattern finds nothing."""
    mask_without_image: Literal["error", "quarantine", "allow"]
    """A mask that belongs to no image. `allow`: leave it out and count it."""
    image_without_mask: Literal["error", "quarantine", "allow"]
    """An image that has no mask. `allow`: use it for pretraining."""
    mask_size: Literal["error", "quarantine", "fix"]
    """A mask whose size differs from its image's. `fix`: scale it by nearest neighbor if the aspect ratio agrees."""
    mask_values: Literal["error", "quarantine", "fix"]
    """A mask with values that belong to no class. `fix`: ignore those pixels."""
    blurred_mask: Literal["error", "quarantine", "fix"]
    """A mask with many values between those of the classes: scaled or lossily compressed. `fix`: take the nearest."""
    empty_mask: Literal["error", "quarantine", "fix", "allow"]
    """A mask in which every pixel is ignored. `fix`: treat the image as having no mask."""
    duplicate: Literal["error", "quarantine", "allow"]
    """Identical image files. `quarantine`: keep one, preferably with a mask, then from test, val, train in that order;
    the others count as duplicates and not against tolerated_share."""
    differing_masks: Literal["error", "quarantine", "allow"]
    """Identical image files with different masks. `quarantine`: leave all of them out, because nothing says which mask
    is right. `allow`: treat them as `duplicate` says."""
    near_duplicate: Literal["error", "quarantine", "allow"]
    """Images in two splits that look the same at a glance: copies in another size or format, neighboring frames.
    `quarantine`: keep the one in test, or in val if neither is in test; the other is a duplicate."""
    contradicting_splits: Literal["error", "fix"]
    """A group in two official splits, or an id in two of their lists. `fix`: put all of it in test if any of it is
    there, otherwise in val."""
    absent_class: Literal["error", "allow"]
    """A class that appears in no mask of a split."""


class PrepareParams(Section):
    val_share: HeldOutShare
    """Share of the groups used to choose the best weights; unused if the data comes with its own splits."""
    test_share: HeldOutShare
    """Share of the groups that the report measures; nothing is trained or chosen on it."""
    official_splits: Literal["kept", "val_is_test", "ignored"]
    """How splits that come with the data are used. `kept`: as named. `val_is_test`: their val becomes test, and part of
    their train becomes val; for sets whose test masks are not public. `ignored`: splits are assigned by group."""
    split_by: Literal["hash", "stratified"]
    """How groups are assigned. `hash`: each independently, so that new data never moves an old image. `stratified`: to
    meet the shares and, if possible, show every class in every split; for small sets. New data may then move images
    from one split to another, and models are no longer compared on the same test split."""
    split_seed: int
    """A different number assigns the groups differently."""
    tolerated_share: Share
    """Share of the files that may be quarantined before the stage stops."""
    max_megapixels: Positive
    """A larger image is refused before it is decoded."""
    shard_mb: AtLeastOne
    """Average size of a shard in megabytes (10^6 bytes)."""
    parts: AtLeastOne
    """Number of parts of the raw data that the pool's machines check; 1: only the stage's own machine checks it."""
    problems: ProblemsParams
    """What to do about each kind of problem with the raw data."""
