"""What every semi-supervised method promises, on a tiny network and images drawn here."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pspnet.config.finetune import PseudoLabelParams
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet
from pspnet.semisup import METHODS
from pspnet.semisup.method import Batch
from pspnet.semisup.pseudo_labels import RUNNING, PseudoLabels, mixed
from tests.parameters import UNLABELED_PARAMS, unlabeled_params

GRAY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES, IGNORE, SIZE = 3, 255, (32, 40)
WITH_PSEUDO_LABELS = [name for name in METHODS if name != "none"]


def build(name: str, decoder: Any = "low_level", **changes: Any) -> PseudoLabels[PseudoLabelParams]:
    torch.manual_seed(0)
    supervised = SupervisedPSPNet(PSPNet(Architecture(18, 0.125, 16, CLASSES, 0.0, decoder=decoder)))
    method = METHODS[name](supervised, GRAY, unlabeled_params(name, **changes), IGNORE)
    assert isinstance(method, PseudoLabels)
    return method


def batch(method: PseudoLabels[PseudoLabelParams], images: int = 4) -> Batch:
    """Two images with masks and some without, whose boxes are their left halves."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int, *shape: int, below: int = 256) -> Tensor:
        return torch.randint(0, below, (count, *shape, *SIZE), dtype=torch.uint8, generator=generator)

    inside, box = torch.ones(2, images, *SIZE, dtype=torch.bool)
    inside[:, :5] = False
    box[:, :, 20:] = False
    without = {"weak": drawn(images, 3), "inside": inside}
    for number in range(method.strong_views):
        without |= {f"strong_{number}": drawn(images, 3), f"box_{number}": box}
    return {"image": drawn(2, 3), "mask": drawn(2, below=CLASSES), **without}


def alone(values: Tensor) -> Tensor:
    """The sum over the devices, of which there is one."""
    return values


def test_the_kinds_in_the_params_are_the_methods() -> None:
    assert UNLABELED_PARAMS.keys() == METHODS.keys()


def test_without_a_method_the_logits_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    supervised = SupervisedPSPNet(PSPNet(Architecture(18, 0.125, 16, CLASSES, 0.0)))
    method = METHODS["none"](supervised, GRAY, unlabeled_params("none"), IGNORE)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    main, auxiliary, streams = method({"image": images})
    expected = supervised(GRAY(images))
    assert torch.equal(main, expected[0]) and torch.equal(auxiliary, expected[1]) and streams == {}
    assert (method.first_step(10), method.weight_at(9, 10)) == (10, 0.0)


@pytest.mark.parametrize("name", WITH_PSEUDO_LABELS)
def test_the_shares_of_the_streams_add_up_to_one(name: str) -> None:
    assert sum(METHODS[name].streams.values()) == 1


def test_cutmix_moves_pixels_within_pairs() -> None:
    own = torch.arange(4)[:, None, None].expand(4, 2, 2)
    box = torch.zeros(4, 2, 2, dtype=torch.bool)
    box[0, 0, 1] = box[3, 1] = True
    assert mixed(own, box).tolist() == [[[0, 1], [0, 0]], [[1, 1], [1, 1]], [[2, 2], [2, 2]], [[3, 3], [2, 2]]]


@pytest.mark.parametrize("name", WITH_PSEUDO_LABELS)
def test_boxes_take_their_pseudo_labels_with_them(name: str) -> None:
    """In image 0, the left half comes from image 1: its pixels, its classes, and where it was ignored."""
    method = build(name, confidence=0.37, class_balance=0.0)
    given = batch(method)
    given["inside"][1, :, :3] = False
    labeled = method.label(given, alone)
    masks = labeled["weak_mask"]
    assert 0 < (masks[1, :, :20] == IGNORE).float().mean() < 1, "choose a confidence that some pixels reach"
    for number in range(method.strong_views):
        image, mask = labeled[f"strong_{number}"], labeled[f"strong_{number}_mask"]
        assert torch.equal(image[0, :, :, :20], given[f"strong_{number}"][1, :, :, :20])
        assert torch.equal(image[0, :, :, 20:], given[f"strong_{number}"][0, :, :, 20:])
        assert torch.equal(mask[0, :, :20], masks[1, :, :20])
        assert torch.equal(mask[0, :, 20:], masks[0, :, 20:])


@pytest.mark.parametrize("name", WITH_PSEUDO_LABELS)
def test_pseudo_labels_are_the_teachers_confident_predictions(name: str) -> None:
    method = build(name, confidence=0.37, class_balance=0.0)
    given = batch(method)
    labeled = method.label(given, alone)
    probabilities = method.teacher(GRAY(given["weak"])).softmax(1)
    highest, classes = probabilities.max(1)
    predicted, accepted = classes.clone(), classes.clone()
    predicted[:, :5] = accepted[:, :5] = IGNORE
    accepted[highest < 0.37] = IGNORE
    near = (highest - 0.37).abs() < 1e-5
    assert torch.equal(labeled["predicted"].long(), predicted)
    assert torch.equal(labeled["weak_mask"].long()[~near], accepted[~near])
    assert (accepted != IGNORE).any() and (accepted != predicted).any()
    assert method.recent[0].tolist() == torch.bincount(predicted.flatten(), minlength=256)[:CLASSES].tolist()
    assert method.in_masks.sum() == given["mask"].numel()


def test_during_the_warm_up_nothing_is_labeled() -> None:
    method = build("unimatch", warmup_share=0.3, ramp_share=0.2, weight=2.0)
    given = {"image": torch.zeros(2, 3, *SIZE, dtype=torch.uint8), "mask": torch.zeros(2, *SIZE, dtype=torch.uint8)}
    assert method.label(given, alone) is given
    assert method(given)[2] == {}
    assert method.figures(("a", "b", "c")) == {}


def test_the_weight_rises_after_the_warm_up() -> None:
    method = build("mean_teacher", warmup_share=0.3, ramp_share=0.4, weight=2.0)
    assert method.first_step(10) == 3
    weights = [method.weight_at(step, 10) for step in range(10)]
    assert weights == pytest.approx([0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0])
    assert build("mean_teacher", warmup_share=0.0, ramp_share=0.0).weight_at(0, 10) == 1.0


def test_thresholds_fall_for_classes_that_are_rarely_confident() -> None:
    method = build("mean_teacher", confidence=0.8, class_balance=0.5)
    assert method.thresholds().tolist() == pytest.approx([0.8, 0.8, 0.8])  # nothing is known yet
    method.running = torch.tensor([[100.0, 10.0, 0.0], [50.0, 1.0, 0.0]])
    # Confident shares 0.5, 0.1 and 0: relative to the best 1, 0.2 and 0.
    assert method.thresholds().tolist() == pytest.approx([0.8, 0.8 * (1 - 0.5 * 0.8), 0.4])
    strict = build("mean_teacher", confidence=0.8, class_balance=0.0)
    strict.running = method.running
    assert strict.thresholds().tolist() == pytest.approx([0.8] * 3)


def test_older_steps_count_less_for_the_thresholds() -> None:
    method = build("mean_teacher")
    given = batch(method)
    method.label(given, alone)
    once = method.running.clone()
    method.label(given, alone)
    assert torch.allclose(method.running, (1 + RUNNING) * once)


def test_figures_are_the_accepted_shares_since_the_last_call() -> None:
    method = build("mean_teacher", confidence=0.0)
    method.label(batch(method), alone)
    figures = method.figures(("sky", "road", "car"))
    assert list(figures) == ["accepted/sky", "accepted/road", "accepted/car"]
    assert sum(figures.values()) == pytest.approx(1)
    assert method.figures(("sky", "road", "car")) == {}


def test_the_teacher_follows_the_network() -> None:
    def after_step(method: PseudoLabels[PseudoLabelParams]) -> tuple[Tensor, list[Tensor]]:
        torch.nn.init.zeros_(method.supervised.network.get_parameter("head.0.weight"))
        spread: list[Tensor] = []
        method.after_step(1000, spread.extend)
        return method.teacher.get_parameter("head.0.weight"), spread

    slow, own = build("mean_teacher", decay=0.5), build("unimatch", decay=0.0)
    before = slow.teacher.get_parameter("head.0.weight").clone()
    followed, spread = after_step(slow)
    assert torch.allclose(followed, before / 2)
    assert len(spread) == len(list(slow.teacher.buffers()))
    assert not after_step(own)[0].any()


@pytest.mark.parametrize("decoder", ["plain", "low_level"])
def test_unimatch_drops_features_of_the_weak_view_alone(decoder: str) -> None:
    dropped, whole = (build("unimatch", decoder, feature_dropout=share) for share in (0.5, 0.0))
    for module in [*dropped.modules(), *whole.modules()]:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # otherwise the dropped features would change the others' normalization
    given = dropped.label(batch(dropped), alone)
    main, auxiliary, streams = dropped(given)
    other_main, other_auxiliary, others = whole(given)
    assert torch.allclose(main, other_main) and torch.allclose(auxiliary, other_auxiliary)
    equal = {name: torch.allclose(streams[name], others[name]) for name in streams}
    assert equal == {"weak": False, "strong_0": True, "strong_1": True}


@pytest.mark.parametrize("name", WITH_PSEUDO_LABELS)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    method = build(name)
    given = method.label(batch(method), alone)
    main, auxiliary, streams = method(given)
    torch.autograd.backward(main.sum() + auxiliary.sum() + sum(one.sum() for one in streams.values()))
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in method.supervised.parameters())
    assert not any(module.training for module in method.teacher.modules())
