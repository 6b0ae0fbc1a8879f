"""The weight of each class in the loss."""

import statistics
from collections.abc import Sequence

from pspnet.config.finetune import LossParams
from pspnet.errors import Problem, UserError


def class_weights(params: LossParams, classes: tuple[str, ...], pixels: Sequence[int]) -> dict[str, float]:
    """Class name -> weight. `pixels` is the number of pixels of each class in the training masks."""
    if params.class_weights == "none":
        return dict.fromkeys(classes, 1.0)
    if params.class_weights == "given":
        return _given(params, classes)
    if not any(pixels):
        raise UserError(Problem("train", "has no annotated pixels", "at least one pixel with a class"))
    median = statistics.median(count for count in pixels if count)
    power = {"median_frequency": 1.0, "inverse_sqrt": 0.5}[params.class_weights]
    return {
        name: min((median / count) ** power, params.class_weight_max) if count else params.class_weight_max
        for name, count in zip(classes, pixels, strict=True)
    }


def _given(params: LossParams, classes: tuple[str, ...]) -> dict[str, float]:
    given = params.given_weights
    where, problems = "finetune.loss.given_weights", []
    if unknown := [name for name in given if name not in classes]:
        problems.append(Problem(where, f"names {', '.join(unknown)}", f"the classes of the data: {', '.join(classes)}"))
    if missing := [name for name in classes if name not in given]:
        problems.append(
            Problem(where, f"has no weight for {', '.join(missing)}", "a weight for each class", "1.0 is neutral.")
        )
    if not problems and not any(given.values()):
        problems.append(Problem(where, "is 0 for every class", "a class to learn"))
    if problems:
        raise UserError(problems)
    return {name: given[name] for name in classes}
