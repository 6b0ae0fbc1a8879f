"""The base class of all sections of params.yaml, and the types their fields share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        strict=True,  # "8" does not count as 8, nor yes as 1
        use_attribute_docstrings=True,
    )


Share = Annotated[float, Field(ge=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=16)]


def check_parts(batch_size: int, accumulation_steps: int) -> None:
    """Check that a step's images split into equal parts of two or more: BatchNorm needs two values for a variance."""
    if batch_size % accumulation_steps or 1 < accumulation_steps > batch_size // 2:
        fitting = [1, *(parts for parts in range(2, batch_size // 2 + 1) if batch_size % parts == 0)]
        numbers = ", ".join(map(str, fitting))
        raise ValueError(
            f"accumulation_steps that split {batch_size} images (batch_size) into parts of 2 or more: {numbers}"
        )
