from typing import Any

import pytest

from pspnet.errors import UserError
from pspnet.losses.class_weights import class_weights
from tests.parameters import demo_params

CLASSES = ("sky", "road", "tree", "car")


def weights(pixels: list[int], **changes: Any) -> list[float]:
    params = demo_params(**{f"finetune__loss__{name}": value for name, value in changes.items()}).finetune.loss
    found = class_weights(params, CLASSES, pixels)
    assert tuple(found) == CLASSES
    return list(found.values())


def test_without_weights_all_classes_count_the_same() -> None:
    assert weights([1, 20, 300, 0], class_weights="none") == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("pixels", "median_frequency", "inverse_sqrt"),
    [
        ([100, 400, 1600, 400], [4, 1, 0.25, 1], [2, 1, 0.5, 1]),
        # The median class has 300 pixels.
        ([100, 200, 400, 800], [3, 1.5, 0.75, 0.375], [3**0.5, 1.5**0.5, 0.75**0.5, 0.375**0.5]),
        # Without the limit, the weights would be 1000 and 31.6.
        ([10, 10_000, 10_000, 10_000], [5, 1, 1, 1], [5, 1, 1, 1]),
        ([100, 0, 400, 1600], [4, 5, 1, 0.25], [2, 5, 1, 0.5]),  # a class without pixels gets the limit
    ],
)
def test_weights_from_pixels(pixels: list[int], median_frequency: list[float], inverse_sqrt: list[float]) -> None:
    expected = {"median_frequency": median_frequency, "inverse_sqrt": inverse_sqrt}
    for rule, values in expected.items():
        assert weights(pixels, class_weights=rule, class_weight_max=5.0) == pytest.approx(values)


@pytest.mark.parametrize("rule", ["median_frequency", "inverse_sqrt"])
def test_weights_do_not_depend_on_the_number_of_images(rule: str) -> None:
    some = [120, 3000, 77, 451]
    assert weights(some, class_weights=rule) == pytest.approx(weights([9 * n for n in some], class_weights=rule))


def test_given_weights_are_used_unchanged_in_the_order_of_the_classes() -> None:
    given = {"car": 40.0, "tree": 0.0, "road": 1.5, "sky": 1.0}
    assert weights([1, 1, 1, 1], class_weights="given", given_weights=given) == [1, 1.5, 0, 40]


UNKNOWN = "names cat; expected the classes of the data: sky, road, tree, car"
MISSING = "has no weight for {}; expected a weight for each class. 1.0 is neutral."


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"sky": 1.0, "road": 1.0}, [MISSING.format("tree, car")]),
        ({"sky": 1.0, "road": 1.0, "tree": 1.0, "car": 1.0, "cat": 1.0}, [UNKNOWN]),
        ({"sky": 1.0, "road": 1.0, "tree": 1.0, "cat": 1.0}, [UNKNOWN, MISSING.format("car")]),
        (dict.fromkeys(CLASSES, 0.0), ["is 0 for every class; expected a class to learn"]),
    ],
)
def test_class_weights_that_do_not_fit_the_classes_are_refused(given: dict[str, float], messages: list[str]) -> None:
    with pytest.raises(UserError) as error:
        weights([1, 1, 1, 1], class_weights="given", given_weights=given)
    found = [str(problem) for problem in error.value.problems]
    assert found == [f"finetune.loss.given_weights: {message}" for message in messages]


def test_fully_ignored_masks_allow_no_class_weights() -> None:
    with pytest.raises(UserError, match="train: has no annotated pixel"):
        weights([0, 0, 0, 0], class_weights="median_frequency")
