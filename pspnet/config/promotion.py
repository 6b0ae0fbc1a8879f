"""`promotion`: what a candidate needs to become the champion."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import Section, Share


class PromotionParams(Section):
    min_mean_iou: Share
    """Test mIoU that every champion must reach, including the first."""
    min_gain: Annotated[float, Field(ge=-1, le=1)]
    """The candidate's test mIoU must exceed the champion's by this much. A negative value lets it be slightly worse."""
    gain_measured_by: Literal["difference", "lower_end"]
    """The figure that must reach min_gain: the difference itself, or the lower end of its 95% interval. The interval
    rules out luck, but with a small test split hardly any candidate passes."""
    max_class_loss: Share
    """No class may lose more IoU than this compared with the champion."""
    resamples: Annotated[int, Field(ge=100)]
    """Number of times the groups of the test split are resampled for the interval."""
    approval: Literal["auto", "manual"]
    """`auto`: a candidate that passes becomes the champion. `manual`: it waits for a person's approval."""
