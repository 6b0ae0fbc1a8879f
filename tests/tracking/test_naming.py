from mlflow.utils.validation import _validate_metric, _validate_param

from pspnet.tracking.naming import distinct, flat, metrics, of_parts
from tests.parameters import demo_params

CLASSES = [
    "sky", "traffic light (red)", "Straße", "道路", "a/b", "a_b", "../up", "..", ".", "", "Car", "car", "x:y",
    "per cent %", "tab\tbed", "n" * 400, "n" * 399 + "m", "/", " ", "emoji 🚗",
]  # fmt: skip


def test_every_class_name_becomes_valid_for_mlflow() -> None:
    names = metrics({"test_iou": dict.fromkeys(CLASSES, 0.5)})
    assert len(names) == len(CLASSES)
    assert len({name.casefold() for name in names}) == len(CLASSES)
    for name in names:
        _validate_metric(name, 0.5, 0, 0)  # type: ignore[no-untyped-call]


def test_names_of_a_history_become_valid_too() -> None:
    record = {"loss": 0.1, **{f"accepted/{name}": 0.5 for name in CLASSES}}
    assert metrics(of_parts(record)) == metrics({"loss": 0.1, "accepted": dict.fromkeys(CLASSES, 0.5)})


def test_valid_names_are_not_changed() -> None:
    fine = ["sky", "Straße", "道路", "traffic-light", "a.b", "two words"]
    assert distinct(dict.fromkeys(fine)) == {name: name for name in fine}


def test_a_name_always_changes_in_the_same_way() -> None:
    assert distinct(dict.fromkeys(CLASSES)) == distinct(dict.fromkeys(reversed(CLASSES)))


def test_a_figure_without_a_value_is_left_out() -> None:
    assert metrics({"mean": 0.5, "none": None, "iou": {"sky": 1, "gone": None}}) == {"mean": 0.5, "iou/sky": 1.0}


def test_params_have_full_names_and_a_mapping_is_one_value() -> None:
    params = demo_params(dataset__classes={"Straße / x": [1, 2]})
    found = flat(params.dataset, "dataset") | flat(params.pretrain, "pretrain")
    assert found["dataset.classes"] == '{"Straße / x": [1, 2]}'
    assert found["pretrain.method.grid"] == "3"
    assert found["pretrain.optimizer.learning_rate"] == "0.001"
    assert found["pretrain.method.kind"] == "jigsaw"
    for name, value in found.items():
        _validate_param(name, value)  # type: ignore[no-untyped-call]
