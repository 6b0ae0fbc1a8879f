from pathlib import Path
from typing import Any

import pytest

from pspnet.config.optimizer import OptimizerParams
from pspnet.config.params import Params, differences, load_params
from pspnet.config.reading import read_yaml, validate
from pspnet.errors import UserError
from tests.parameters import METHOD_PARAMS, ROOT, changed, demo_params

*FIRST, LAST = map(repr, METHOD_PARAMS)
METHODS = f"{', '.join(FIRST)} or {LAST}"


def problems(**changes: Any) -> list[str]:
    with pytest.raises(UserError) as error:
        validate(Params, changed(read_yaml(ROOT / "params.yaml"), changes), "params.yaml")
    return [str(problem) for problem in error.value.problems]


def test_an_unknown_key_is_reported_with_the_closest_known_key() -> None:
    assert problems(finetune__optimizer__lerning_rate=0.1) == [
        "params.yaml: unknown key 'finetune.optimizer.lerning_rate'; did you mean 'finetune.optimizer.learning_rate'?"
    ]
    assert problems(finetun={}) == ["params.yaml: unknown key 'finetun'; did you mean 'finetune'?"]
    assert problems(pretrain__method__grit=3) == [
        "params.yaml: unknown key 'pretrain.method.grit'; did you mean 'pretrain.method.grid'?"
    ]
    assert problems(colour=3) == ["params.yaml: unknown key 'colour'"]


def test_keys_from_before_the_optimizer_section_are_reported_with_their_new_location() -> None:
    old = {f"finetune__{name}": value for name, value in demo_params().finetune.optimizer.model_dump().items()}
    del old["finetune__kind"]
    keys = ", ".join(OptimizerParams.model_fields)
    assert problems(**old, finetune__optimizer="adamw") == [
        f"params.yaml: finetune.optimizer is 'adamw' (text); expected `key: value` lines: {keys}",
        *(
            f"params.yaml: unknown key 'finetune.{name}'; did you mean 'finetune.optimizer.{name}'?"
            for name in (key.removeprefix("finetune__") for key in old)
        ),
    ]


def test_keys_from_before_the_method_section_are_reported_with_their_new_location() -> None:
    jigsaw, inpainting = {"grid": 3, "gap_px": 2, "gray_probability": 0.3}, {"block_px": 16, "hidden_share": 0.4}
    assert problems(pretrain__method="jigsaw", pretrain__jigsaw=jigsaw, pretrain__inpainting=inpainting) == [
        (
            "params.yaml: pretrain.method is 'jigsaw' (text); "
            "expected `key: value` lines: kind: jigsaw, grid, gap_px, gray_probability"
        ),
        *(
            (
                f"params.yaml: unknown key 'pretrain.{kind}.{key}'; "
                f"did you mean 'pretrain.method.{key}', with {with_kinds(kind, key)}?"
            )
            for kind, keys in {"jigsaw": jigsaw, "inpainting": inpainting}.items()
            for key in keys
        ),
    ]
    assert problems(pretrain__method="none") == [
        "params.yaml: pretrain.method is 'none' (text); expected `key: value` lines: kind: none"
    ]


def with_kinds(kind: str, key: str) -> str:
    """The kinds that have this key: its own, and those that share it."""
    others = {"grid": "densecl", "gray_probability": "densecl", "hidden_share": "masked"}
    return f"kind: {kind} or kind: {others[key]}" if key in others else f"kind: {kind}"


def test_a_changed_kind_is_reported_with_the_keys_it_needs_and_those_of_the_old_kind() -> None:
    assert problems(pretrain__method__kind="inpainting") == [
        "params.yaml: 'pretrain.method.block_px' is missing. Side of the hidden square blocks. For example: 32",
        "params.yaml: 'pretrain.method.hidden_share' is missing. Share of the blocks that are hidden. For example: 0.4",
        *(
            f"params.yaml: unknown key 'pretrain.method.{key}'; it belongs to {with_kinds('jigsaw', key)}"
            for key in ("grid", "gap_px", "gray_probability")
        ),
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("puzzle", f"pretrain.method is 'puzzle' (text); expected `key: value` lines: kind: {METHODS}"),
        (None, f"pretrain.method is nothing; expected `key: value` lines: kind: {METHODS}"),
        ({}, f"'pretrain.method.kind' is missing; expected {METHODS}"),
        ({"kind": "puzzle"}, f"pretrain.method.kind is 'puzzle' (text); expected {METHODS}"),
    ],
)
def test_a_section_without_a_kind_is_reported_with_the_possible_kinds(value: object, told: str) -> None:
    assert problems(pretrain__method=value) == [f"params.yaml: {told}"]


def test_a_key_in_the_wrong_section_is_reported_with_the_right_one() -> None:
    assert problems(split_seed=3) == ["params.yaml: unknown key 'split_seed'; did you mean 'prepare.split_seed'?"]


LOSSES = "'cross_entropy', 'cross_entropy_dice', 'dice', 'focal' or 'ohem'"
MASK_VALUE = "a whole number from 0 to 65535, a color such as '#dc143c', a label, or several in []"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune__batch_size": "many"}, "finetune.batch_size is 'many' (text); expected a whole number"),
        ({"finetune__batch_size": 0}, "finetune.batch_size is 0; expected greater than or equal to 1"),
        ({"pretrain__epochs": True}, "pretrain.epochs is true (yes or no); expected a whole number"),
        ({"pretrain__epochs": 2.5}, "pretrain.epochs is 2.5; expected a whole number"),
        ({"backbone__depth": 20}, "backbone.depth is 20; expected 18, 34, 50, 101 or 152"),
        (
            {"backbone__weights": "imagenet"},
            "backbone does not fit together; expected width 1 and stem seven with weights: imagenet",
        ),
        ({"runtime": None}, "runtime is nothing; expected `key: value` lines: seed, threads, precision, compile"),
        ({"dataset__ignore_values": 255}, "dataset.ignore_values is 255; expected a list"),
        ({"dataset__classes": {"sky": -1}}, f"dataset.classes.sky is -1; expected {MASK_VALUE}"),
        ({"dataset__classes": {"sky": "#blue"}}, f"dataset.classes.sky is '#blue' (text); expected {MASK_VALUE}"),
        ({"dataset__classes": {"sky": [0, "#12345"]}}, f"dataset.classes.sky is a list; expected {MASK_VALUE}"),
        ({"dataset__images": "images"}, "unknown key 'dataset.images'; did you mean 'dataset.source.images'?"),
        (
            {"predict__window_overlap_px": 1024},
            "predict does not fit together; expected window_overlap_px smaller than window_px",
        ),
        ({"predict__scales": [1.0, 1.0]}, "predict does not fit together; expected scales that are all different"),
        ({"predict__scales": [5.0]}, "predict.scales.0 is 5.0; expected less than or equal to 4"),
        ({"finetune__scale_min": 2.0}, "finetune does not fit together; expected scale_min of at most scale_max"),
        ({"finetune__loss__kind": "lovasz"}, f"finetune.loss.kind is 'lovasz' (text); expected {LOSSES}"),
        ({"finetune__loss__ohem_threshold": 0.0}, "finetune.loss.ohem_threshold is 0.0; expected greater than 0"),
        (
            {"finetune__loss__given_weights": {"sky": -1.0}},
            "finetune.loss.given_weights.sky is -1.0; expected greater than or equal to 0",
        ),
        (
            {"finetune__batch_size": 12, "finetune__optimizer__accumulation_steps": 5},
            (
                "finetune does not fit together; "
                "expected accumulation_steps that split 12 images (batch_size) into parts of 2 or more: 1, 2, 3, 4, 6"
            ),
        ),
        (
            {"pretrain__method__gap_px": 16},
            "pretrain does not fit together; expected method.gap_px of less than half a patch (crop_px / method.grid)",
        ),
        (
            {"pretrain__method": {"kind": "inpainting", "block_px": 50, "hidden_share": 0.4}},
            "pretrain does not fit together; expected method.block_px of at most half of crop_px",
        ),
        (
            {"pretrain__method": {"kind": "masked", "patch_px": 24, "hidden_share": 0.6, "select": "random"}},
            (
                "pretrain does not fit together; "
                "expected method.patch_px of a multiple of output_stride, so that a feature belongs to one patch"
            ),
        ),
        *(
            (
                {
                    "pretrain__method": {"kind": "masked", "patch_px": 32, "hidden_share": 0.6, "select": "random"},
                    "pretrain__crop_px": crop_px,
                },
                (
                    "pretrain does not fit together; "
                    "expected crop_px of a multiple of method.patch_px, at least twice as large"
                ),
            )
            for crop_px in (32, 80)
        ),
        ({"prepare__max_megapixels": float("inf")}, "prepare.max_megapixels is inf; expected a finite number"),
        (
            {"registry__model": "my model"},
            "registry.model is 'my model' (text); expected letters and digits, with . _ - between them",
        ),
        ({"promotion__resamples": 99}, "promotion.resamples is 99; expected greater than or equal to 100"),
        ({"promotion__min_gain": -2}, "promotion.min_gain is -2; expected greater than or equal to -1"),
        ({"promotion__approval": "maybe"}, "promotion.approval is 'maybe' (text); expected 'auto' or 'manual'"),
        ({"serve__max_images": 0}, "serve.max_images is 0; expected greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_reported_with_the_expected_values(changes: dict[str, Any], message: str) -> None:
    assert problems(**changes) == [f"params.yaml: {message}"]


def test_a_missing_key_is_reported_with_its_meaning(tmp_path: Path) -> None:
    content = read_yaml(ROOT / "params.yaml")
    del content["evaluate"]["pictures"]
    with pytest.raises(UserError) as error:
        validate(Params, content, "params.yaml")
    assert str(error.value) == (
        "params.yaml: 'evaluate.pictures' is missing. Number of best images, and of worst images, on the page."
    )


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(problems(pretrain__epochs=0, runtime__threads=0, prepare__val_share=2, nonsense=1)) == 4


def test_numbers_can_be_written_with_an_exponent(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("learning_rate: 0.004", "learning_rate: 4e-3")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").finetune.optimizer.learning_rate == 0.004


def test_a_key_that_appears_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(UserError, match="key 'a' appears twice"):
        read_yaml(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds nothing"),
        (b"- 1", "holds a list"),
        (b"a: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_a_params_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_params(tmp_path / "params.yaml")


def test_a_share_is_at_most_one() -> None:
    told = "finetune.flip_probability is 1.5; expected less than or equal to 1"
    assert problems(finetune__flip_probability=1.5) == [f"params.yaml: {told}"]


def test_differences_are_the_keys_that_differ() -> None:
    then = {"runtime": {"seed": 0, "threads": 2}, "dataset": {"classes": {}}}
    now = {"runtime": {"seed": 1, "threads": 2}, "dataset": {"classes": {"road": [1]}}}
    assert differences(then, now) == {
        "runtime.seed": (0, 1),
        "dataset.classes": ({}, None),
        "dataset.classes.road": (None, [1]),
    }
