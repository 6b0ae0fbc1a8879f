"""`promotion`: what a candidate must show before it becomes the champion."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import Section, Share


class PromotionParams(Section):
    min_mean_iou: Share
    """Test mIoU that any model must reach, the first one too."""
    min_gain: Annotated[float, Field(ge=-1, le=1)]
    """Test mIoU of the candidate minus the champion's must be at least this. Below 0: a little worse will do."""
    gain_measured_by: Literal["difference", "lower_end"]
    """What must reach min_gain: the difference itself, or the lower end of its 95 % interval (a lucky split is not
    enough, but small test splits let hardly anything pass)."""
    max_class_loss: Share
    """No class may lose more IoU than this against the champion."""
    resamples: Annotated[int, Field(ge=100)]
    """How often the groups of the test split are drawn again for the interval."""
    approval: Literal["auto", "manual"]
    """`auto`: what passes becomes the champion. `manual`: it waits for a person to say so."""
