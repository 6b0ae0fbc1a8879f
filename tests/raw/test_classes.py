from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.dataset.store.pixels import decode_mask
from pspnet.errors import UserError
from pspnet.raw.classes import IGNORE, Classes, Declared, declared_classes, default_color, pixel_counts
from pspnet.raw.masks import Values
from tests.raw.rawdata import dataset_params, write


def from_file(raw: Path, text: str) -> Classes:
    write(raw / "classes.yaml", text)
    return declared_classes(dataset_params(classes={}, ignore_values=[]), raw)


def test_classes_come_from_the_params(tmp_path: Path) -> None:
    classes = declared_classes(
        dataset_params(classes={"sky": 10, "road": [3, 4]}, colors={"road": [1, 2, 3]}), tmp_path
    )
    assert classes.names == ("sky", "road")
    assert classes.colors == (default_color(0), (1, 2, 3))
    assert classes.values == {10: 0, 3: 1, 4: 1}
    assert classes.ignore_values == (255,)


def test_classes_come_from_the_file_next_to_the_data(tmp_path: Path) -> None:
    text = "classes: {sky: 10, road: [3, 4]}\ncolors: {sky: [9, 9, 9]}\nignore_values: [0]\n"
    classes = from_file(tmp_path, text)
    assert classes.names == ("sky", "road")
    assert classes.colors[0] == (9, 9, 9)
    assert classes.ignore_values == (0,)


def test_colors_and_ignore_values_in_the_file_are_optional(tmp_path: Path) -> None:
    assert from_file(tmp_path, "classes: {a: 0, b: 1}").ignore_values == ()


def test_classes_named_in_two_places_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "classes.yaml", "classes: {a: 0, b: 1}")
    with pytest.raises(UserError, match=r"names the classes, and so does dataset\.classes"):
        declared_classes(dataset_params(), tmp_path)


def test_missing_classes_are_reported_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is missing(.|\n)*classes:\n  background: 0"):
        declared_classes(dataset_params(classes={}, ignore_values=[]), tmp_path)


def test_ignore_values_without_classes_in_the_same_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "classes.yaml", "classes: {a: 0, b: 1}")
    with pytest.raises(UserError, match="all three in one file"):
        declared_classes(dataset_params(classes={}, ignore_values=[255]), tmp_path)


def test_all_problems_with_classes_are_reported_at_once(tmp_path: Path) -> None:
    text = "classes: {a: 0, b: [0, 1], c: [], d: 7}\ncolors: {e: [1, 2, 3]}\nignore_values: [7]\n"
    with pytest.raises(UserError) as error:
        from_file(tmp_path, text)
    reported = [problem.found for problem in error.value.problems]
    assert reported == [
        "class 'c' has no value",
        "value 7 is class 'd' and also ignored",
        "value 0 occurs 2 times ('a', 'b')",
        "names a color for 'e', which is not a class",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: {a: 0}", "names only one class, a"),
        ("classes: {a: x, b: 1}", "class 'a' has value 'x'"),
        ("classes: {a: -1, b: 1}", "classes.a is -1"),
        ("classes: {a: 0, b: 65536}", "classes.b is 65536"),
        ("classes: {a: 0, b: 1}\ncolors: {a: [1, 2]}", "'a' has color [1, 2]"),
        ("classes: {a: 0, b: 1}\ncolours: {}", "unknown key 'colours'; did you mean 'colors'"),
        ("classes: {a: 0, a: 1}", "key 'a' appears twice"),
        ("colors: {}", "'classes' is missing"),
    ],
)
def test_an_invalid_classes_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_file(tmp_path, text)
    assert message in str(error.value)
    assert "classes.yaml" in str(error.value)


def test_255_classes_fit_and_256_do_not(tmp_path: Path) -> None:
    many = {f"class{index}": index for index in range(256)}
    with pytest.raises(UserError, match="names 256 classes; expected at most 255"):
        declared_classes(dataset_params(classes=many, ignore_values=[]), tmp_path)
    many.pop("class255")
    classes = declared_classes(dataset_params(classes=many, ignore_values=[]), tmp_path)
    assert max(classes.values.values()) == 254 != IGNORE


def test_default_colors_of_255_classes_differ() -> None:
    assert len({default_color(index) for index in range(255)}) == 255


def test_neighboring_default_colors_are_far_apart() -> None:
    colors = np.array([default_color(index) for index in range(12)])
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 999 * np.eye(12, dtype=int)
    assert distances.min() > 60


CLASSES = Classes(("a", "b"), (default_color(0), default_color(1)), {0: 0, 1000: 1, 7: 1}, (9,))


NUMBERS = Classes(("a", "b"), (default_color(0), default_color(1)), {0: 0, 1: 1}, (255,))


def test_raw_values_become_class_indices() -> None:
    mask = CLASSES.index_of(np.array([[0, 1000], [7, 9]], np.uint16))
    assert mask.tolist() == [[0, 1], [1, IGNORE]]
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 6), (37, 90)])
@pytest.mark.parametrize("most", [2, 12])
def test_a_mask_is_encoded_with_the_class_of_each_value(kind: type, shape: tuple[int, int], most: int) -> None:
    values: Values = np.random.default_rng(0).integers(0, most, shape).astype(kind)
    for turned in (values, values.T, values[::-1], np.rot90(values), values[:, ::-1]):
        for classes in (CLASSES, NUMBERS):
            encoded = classes.encoded(turned, np.unique(turned).tolist())
            assert np.array_equal(decode_mask(encoded), classes.index_of(turned))


def test_unknown_values_are_listed_with_their_pixels() -> None:
    assert CLASSES.unknown(pixel_counts(np.array([[0, 5, 5], [7, 9, 65535]], np.uint16))) == {5: 2, 65535: 1}
    assert CLASSES.unknown(pixel_counts(np.array([[0, 7], [9, 0]], np.uint8))) == {}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("expected", [{0, 3}, {3}, {0, 3, 9}, {0, 3, 1000}, set(range(20))])
def test_declaring_more_values_does_not_change_the_counts(kind: type, expected: set[int]) -> None:
    assert pixel_counts(np.array([[3, 3, 0], [3, 0, 3]], kind), expected) == {0: 2, 3: 4}


NUMBERED = Declared({"road": 7, "car": 26, "truck": [27, 29]}, {}, [0])
LABELED = Declared({"background": 0, "car": 1, "truck": 2, "dirt": 3}, {}, [65535], by_label=True)


def of_layout(layout: Declared, **changes: Any) -> Classes:
    return declared_classes(dataset_params(**{"ignore_values": [], **changes}), Path("raw"), layout)


def test_params_can_use_the_names_of_the_layout_for_values() -> None:
    classes = of_layout(NUMBERED, classes={"way": ["road", 8], "vehicle": ["car", "truck"]}, ignore_values=[0])
    assert classes.values == {7: 0, 8: 0, 26: 1, 27: 1, 29: 1}
    assert classes.ignore_values == (0,)


def test_several_labels_can_be_merged_into_one_class() -> None:
    changes = {"classes": {"background": "background", "vehicle": ["car", "truck"]}, "ignore_values": ["dirt"]}
    classes = of_layout(LABELED, **changes)
    assert (classes.names, classes.values) == (("background", "vehicle"), {0: 0, 1: 1, 2: 1})
    assert classes.ignore_values == (3, 65535)
    assert of_layout(LABELED, classes={}).names == ("background", "car", "truck", "dirt")


def test_unknown_and_unused_labels_are_reported_at_once() -> None:
    with pytest.raises(UserError) as error:
        of_layout(LABELED, classes={"background": "background", "car": ["cart", 1]}, ignore_values=["dirt"])
    problems = error.value.problems
    labels = "a label: background, car, truck, dirt"
    assert [(problem.found, problem.expected) for problem in problems] == [
        ("class 'car' has value 'cart'", labels),
        ("class 'car' has value 1", labels),
        ("assigns no class to 2 labels: car, truck", "each label in a class or in ignore_values"),
    ]
    assert problems[2].fix == "To make them background: `background: [background, car, truck]`."


def test_text_that_is_not_a_value_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'sky' has value 'blue'; expected a number or a color such as '#dc143c'$"):
        declared_classes(dataset_params(classes={"sky": "blue", "road": 1}), tmp_path)
    with pytest.raises(UserError, match=r"'#dc143c', or a name from the layout: road, car, truck$"):
        of_layout(NUMBERED, classes={"sky": "blue", "road": "road"})
