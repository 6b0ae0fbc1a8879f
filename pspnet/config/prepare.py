"""`prepare`: how raw files become the prepared dataset."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import AtLeastOne, Positive, Section, Share

HeldOutShare = Annotated[float, Field(gt=0, lt=0.9)]


class ProblemsParams(Section):
    """What to do about each kind of problem.

    `error`: stop the stage once all problems are found. `quarantine`: leave the image out, list it in the report and
    count it against `tolerated_share`. `fix`: repair it as described here and report it, or quarantine it if that
    fails. `allow`: use it unchanged, and report it.
    """

    unreadable: Literal["error", "quarantine"]
    """A file that is empty, truncated, broken or of an unsupported kind."""
    too_large: Literal["error", "quarantine"]
    """An image with more than max_megapixels."""
    wrong_suffix: Literal["error", "quarantine", "allow"]
    """A JPEG named .png, for example. It is read according to its content."""
    not_an_image: Literal["error", "quarantine", "allow"]
    """A file in the image or mask folder with a name that matches neither images nor masks. `allow`: leave it out and
    count it."""
    ambiguous: Literal["error", "quarantine"]
    """Two images with the same id, or several masks for one image."""
    no_group: Literal["error", "quarantine"]
    """An id in which dataset.group_pattern finds nothing."""
    mask_without_image: Literal["error", "quarantine", "allow"]
    """A mask that does not belong to any image. `allow`: leave it out and count it."""
    image_without_mask: Literal["error", "quarantine", "allow"]
    """An image that has no mask. `allow`: use it for pretraining."""
    mask_size: Literal["error", "quarantine", "fix"]
    """A mask that is not the same size as its image. `fix`: scale it by nearest neighbor if the aspect ratio agrees."""
    mask_values: Literal["error", "quarantine", "fix"]
    """A mask with values that do not belong to any class. `fix`: ignore those pixels."""
    blurred_mask: Literal["error", "quarantine", "fix"]
    """A mask with many values between those of the classes: scaled or lossily compressed. `fix`: take the nearest
    value."""
    empty_mask: Literal["error", "quarantine", "fix", "allow"]
    """A mask in which every pixel is ignored. `fix`: treat the image as having no mask."""
    duplicate: Literal["error", "quarantine", "allow"]
    """Identical image files. `quarantine`: keep one, preferably with a mask, then from test, val or train, in that
    order. The others count as duplicates, not against tolerated_share."""
    differing_masks: Literal["error", "quarantine", "allow"]
    """Identical image files with different masks. `quarantine`: leave all of them out, because nothing says which mask
    is right. `allow`: treat them as `duplicate` says."""
    near_duplicate: Literal["error", "quarantine", "allow"]
    """Images in two splits that look the same at a glance: copies in a different size or format, or neighboring frames.
    `quarantine`: keep the image in test, or in val if neither is in test. The other is a duplicate."""
    contradicting_splits: Literal["error", "fix"]
    """A group in two official splits, or an id in two of their lists. `fix`: put all of it in test if any of it is
    there, otherwise in val."""
    absent_class: Literal["error", "allow"]
    """A class that appears in no mask of a split."""


class PrepareParams(Section):
    val_share: HeldOutShare
    """Share of the groups used to choose the best weights. It is ignored if the data comes with its own splits."""
    test_share: HeldOutShare
    """Share of the groups used for the report. Nothing is trained or chosen on them."""
    official_splits: Literal["kept", "val_is_test", "ignored"]
    """How splits that come with the data are used. `kept`: as named. `val_is_test`: their val becomes test, and part of
    their train becomes val; for data sets that do not publish their test masks. `ignored`: splits are assigned by
    group."""
    split_by: Literal["hash", "stratified"]
    """How groups are assigned. `hash`: each group independently, so that new data never moves an old image.
    `stratified`: for small sets, to meet the shares and, if possible, show every class in every split. With
    `stratified`, new data can move images between splits, so models are no longer compared on the same test split."""
    split_seed: int
    """Changing this number assigns the groups differently."""
    tolerated_share: Share
    """Share of the files that may be quarantined before the stage stops."""
    max_megapixels: Positive
    """A larger image is rejected before it is decoded."""
    shard_mb: AtLeastOne
    """Average size of a shard in megabytes (10^6 bytes)."""
    parts: AtLeastOne
    """Number of parts to split the raw data into, so that the pool's machines can check them. With 1, only the stage's
    own machine checks the data."""
    problems: ProblemsParams
    """What to do about each kind of problem with the raw data."""
