"""`pretrain.optimizer` and `finetune.optimizer`: how training turns gradients into weights."""

from typing import Annotated, Literal

from pydantic import Field

from pspnet.config.section import AtLeastOne, Count, NotNegative, Positive, Section, Share


class OptimizerParams(Section):
    kind: Literal["adamw", "sgd", "rmsprop"]
    """AdamW suits short runs, SGD long ones. The published PSPNet was trained with SGD."""
    learning_rate: Positive
    """Learning rate at the start of the schedule, reached at the end of the warm-up."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """For SGD and RMSprop; AdamW uses its own."""
    weight_decay: NotNegative
    """Weight decay: decoupled in AdamW, added to the gradient in SGD and RMSprop."""
    decay_norms_and_biases: bool
    """Whether biases and the scales and shifts of BatchNorm also decay, as published. Many projects exempt them."""
    schedule: Literal["poly", "cosine"]
    """How the learning rate falls: with poly_power, or along half a cosine wave."""
    warmup_steps: Count
    """Steps over which the learning rate rises from 0."""
    poly_power: Positive
    """For the schedule `poly`: learning rate = learning_rate * (1 - step / steps) ** poly_power."""
    learning_rate_floor: Share
    """The schedule ends at this share of learning_rate; 0 as published."""
    gradient_clip_norm: NotNegative
    """Gradients longer than this are shortened to this length; 0: never."""
    accumulation_steps: AtLeastOne
    """Number of parts into which each device splits its share of a step, to save memory. BatchNorm sees one part at a
    time."""
