import math
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pspnet.losses import likelihood
from pspnet.losses.segmentation import supervised_loss
from tests.losses.batches import CLASSES, IGNORE, KINDS, WEIGHTS, batch, build, straightforward, weighted

SIZES = [((5, 7), (23, 31)), ((3, 3), (24, 24)), ((6, 5), (6, 5)), ((1, 1), (9, 4)), ((4, 9), (3, 2))]


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the size of a strip so that even small images span several strips."""
    monkeypatch.setattr(likelihood, "CPU_VALUES", 600)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("coarse", "size"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_equal_those_of_the_straightforward_loss(
    kind: str, coarse: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> None:
    logits, masks = batch(coarse, size)
    loss = build(kind, align_corners=align_corners)(logits, masks)
    expected = straightforward(kind, logits, masks, align_corners)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_count_as_in_the_straightforward_loss(kind: str) -> None:
    logits, masks = batch()
    expected = straightforward(kind, logits, masks, align_corners=False, weights=WEIGHTS)
    torch.testing.assert_close(weighted(kind)(logits, masks), expected, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_slopes_of_the_loss(kind: str) -> None:
    logits, masks = batch((3, 4), (9, 11))
    loss = weighted(kind)
    assert torch.autograd.gradcheck(lambda values: loss(values, masks), (logits,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("build_one", [build, weighted])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_annotation_gives_zero_and_a_zero_gradient(kind: str, build_one: Any) -> None:
    logits, masks = batch(dtype=torch.float32)
    loss = build_one(kind)(logits, torch.full_like(masks, IGNORE))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_classes_with_weight_zero_gives_zero(kind: str) -> None:
    logits, masks = batch(dtype=torch.float32)
    loss = build(kind, class_weights="given", given_weights={**WEIGHTS, "sky": 0.0})(logits, torch.zeros_like(masks))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_change_neither_loss_nor_gradient(kind: str) -> None:
    logits, masks = batch((6, 5), (6, 5))
    other = torch.where((masks == IGNORE)[:, None], 7 * torch.randn_like(logits), logits)
    loss = build(kind)
    assert loss(other, masks).item() == pytest.approx(loss(logits, masks).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss(logits, masks), logits)
    assert not gradient[(masks == IGNORE)[:, None].expand_as(gradient)].any()
    assert gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_classes_does_not_matter(kind: str) -> None:
    logits, masks = batch()
    loss = build(kind)(logits, masks).item()
    for order in permutations(range(len(CLASSES))):
        renamed = masks.clone()
        for new, old in enumerate(order):
            renamed[masks == old] = new
        assert build(kind)(logits[:, list(order)], renamed).item() == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_ratios_of_class_weights_matter(kind: str) -> None:
    logits, masks = batch()
    twice = build(kind, class_weights="given", given_weights={name: 2 * w for name, w in WEIGHTS.items()})
    assert twice(logits, masks).item() == pytest.approx(weighted(kind)(logits, masks).item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_class_weights_change_nothing(kind: str) -> None:
    logits, masks = batch()
    equal = build(kind, class_weights="given", given_weights=dict.fromkeys(CLASSES, 3.0))
    assert equal(logits, masks).item() == pytest.approx(build(kind)(logits, masks).item(), rel=1e-6)


@pytest.mark.parametrize("class_weights", ["none", "given"])
@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_the_weighted_losses_of_parts_add_up_to_the_loss_of_the_batch(kind: str, class_weights: str) -> None:
    logits, masks = batch()
    masks[0] = IGNORE  # one part has no annotations
    masks[1, :15] = 3  # and the other parts show different classes
    loss = build(kind, class_weights=class_weights, given_weights=WEIGHTS)
    whole = torch.autograd.grad(loss(logits, masks), logits)[0]
    total = loss.weight(masks)
    parts = [loss(logits[n : n + 1], masks[n : n + 1]) * loss.weight(masks[n : n + 1]) / total for n in (0, 1)]
    torch.testing.assert_close(torch.autograd.grad(sum(parts, torch.tensor(0.0)), logits)[0], whole)
    assert loss.weight(masks[:1]).item() == 0


def test_the_weight_of_masks_is_the_sum_over_their_annotated_pixels() -> None:
    masks = torch.tensor([[[0, 1, 3], [3, IGNORE, IGNORE]]], dtype=torch.uint8)
    assert build("dice").weight(masks).item() == 4
    assert weighted("dice").weight(masks).item() == 0.5 + 2 + 3 + 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_is_no_class_makes_the_loss_nan(kind: str) -> None:
    logits, masks = batch()
    masks[0, 0, 0] = len(CLASSES)
    assert math.isnan(build(kind)(logits, masks).item())
    assert math.isnan(weighted(kind)(logits, masks).item())


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_logit_makes_the_loss_infinite_or_nan(kind: str) -> None:
    logits, masks = batch()
    with torch.no_grad():
        logits[0, 0, 0, 0] = torch.nan
    assert not math.isfinite(build(kind)(logits, masks).item())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_bfloat16_logits_are_computed_in_float32(kind: str) -> None:
    logits, masks = batch(dtype=torch.bfloat16)
    exact = logits.detach().double().requires_grad_()
    loss = build(kind)(logits, masks)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), straightforward(kind, exact, masks, False), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(straightforward(kind, exact, masks, False), exact)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), expected, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_round_the_loss(kind: str) -> None:
    logits, masks = batch(dtype=torch.float32)
    plain = torch.autograd.grad(build(kind)(logits, masks), logits)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build(kind)(logits, masks)
    assert torch.equal(torch.autograd.grad(loss, logits)[0], plain)


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the number of values in the largest tensor that is created."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        made = [one for one in (results if isinstance(results, tuple | list) else [results]) if isinstance(one, Tensor)]
        self.values = max(self.values, *(one.numel() for one in made), 0)
        return results


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_has_the_size_of_the_enlarged_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "CPU_VALUES", 4000)
    logits, masks = batch((13, 13), (100, 100), torch.bfloat16)
    loss = build(kind)
    with _Largest() as largest:  # type: ignore[no-untyped-call]
        loss(logits, masks).backward()  # type: ignore[no-untyped-call]
    assert largest.values == masks.numel()
    assert logits.grad is not None


def test_cross_entropy_of_uniform_logits_is_the_log_of_the_number_of_classes() -> None:
    masks = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert build("cross_entropy")(torch.zeros(1, 4, 2, 2), masks).item() == pytest.approx(math.log(4))


def test_cross_entropy_equals_torchs_with_weights_and_ignored_value() -> None:
    logits, masks = batch((6, 5), (6, 5))
    of_class = torch.tensor(list(WEIGHTS.values()), dtype=logits.dtype)
    expected = F.cross_entropy(logits, masks.long(), of_class, ignore_index=IGNORE)
    torch.testing.assert_close(weighted("cross_entropy")(logits, masks), expected)


# Two pixels of road and one of car, predicted with probabilities 0.5, 0.25 and 0.125. One pixel is ignored.
SHARES = torch.tensor(
    [[0.25, 0.50, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]]
)
LOGITS = SHARES.log().T[None, :, None, :]  # shape (1, 4, 1, 4)
MASKS = torch.tensor([[[1, 1, 3, IGNORE]]], dtype=torch.uint8)
NLL = math.log(2), math.log(4), math.log(8)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("cross_entropy", {}, sum(NLL) / 3),
        ("cross_entropy", {"class_weights": "given"}, (2 * NLL[0] + 2 * NLL[1] + 3 * NLL[2]) / 7),
        ("focal", {"focal_gamma": 2.0}, (0.25 * NLL[0] + 0.5625 * NLL[1] + 0.765625 * NLL[2]) / 3),
        ("focal", {"focal_gamma": 0.0}, sum(NLL) / 3),
        ("focal", {"focal_gamma": 2.0, "class_weights": "given"},
         (2 * 0.25 * NLL[0] + 2 * 0.5625 * NLL[1] + 3 * 0.765625 * NLL[2]) / 7),
        ("ohem", {"ohem_threshold": 0.3, "ohem_least_share": 0.01}, (NLL[1] + NLL[2]) / 2),
        ("ohem", {"ohem_threshold": 0.2, "ohem_least_share": 0.01}, NLL[2]),
        ("ohem", {"ohem_threshold": 0.01, "ohem_least_share": 0.01}, NLL[2]),
        ("ohem", {"ohem_threshold": 0.01, "ohem_least_share": 0.5}, (NLL[1] + NLL[2]) / 2),
        ("ohem", {"ohem_threshold": 1.0, "ohem_least_share": 0.01}, sum(NLL) / 3),
        # Road: 1 - 2 * 0.75 / (1 + 2). Car: 1 - 2 * 0.125 / (0.375 + 1). Sky and tree are absent.
        ("dice", {}, (0.5 + 1 - 0.25 / 1.375) / 2),
        ("dice", {"class_weights": "given"}, (2 * 0.5 + 3 * (1 - 0.25 / 1.375)) / 5),
        ("cross_entropy_dice", {"cross_entropy_share": 0.25},
         0.25 * sum(NLL) / 3 + 0.75 * (0.5 + 1 - 0.25 / 1.375) / 2),
    ],
)  # fmt: skip
def test_losses_equal_those_computed_by_hand(kind: str, changes: dict[str, Any], expected: float) -> None:
    assert build(kind, given_weights=WEIGHTS, **changes)(LOGITS, MASKS).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_has_a_finite_gradient_at_probability_one(gamma: float) -> None:
    logits = torch.zeros(1, 4, 1, 1)
    logits[0, 2] = 200
    logits.requires_grad_()
    loss = build("focal", focal_gamma=gamma)(logits, torch.full((1, 1, 1), 2, dtype=torch.uint8))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    coarse=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_losses_compare_as_their_definitions_imply(seed: int, size: tuple[int, int], coarse: tuple[int, int]) -> None:
    logits, masks = batch(coarse, size, torch.float32, seed)
    losses = {kind: build(kind)(logits, masks).item() for kind in KINDS}
    assert 0 <= losses["dice"] <= 1
    assert 0 <= losses["focal"] <= losses["cross_entropy"] + 1e-6
    assert losses["ohem"] >= losses["cross_entropy"] - 1e-6
    assert losses["cross_entropy_dice"] == pytest.approx((losses["cross_entropy"] + losses["dice"]) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_loss_is_reproducible_and_equals_the_cpus(kind: str) -> None:
    device = torch.device("cuda")
    logits, masks = batch((30, 30), (240, 240), torch.float32)
    loss = build(kind, device=device)
    found = logits.detach().to(device).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(loss(found, masks.to(device)), found)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.cpu(), torch.autograd.grad(build(kind)(logits, masks), logits)[0])


def test_auxiliary_loss_counts_by_its_weight() -> None:
    assert supervised_loss(torch.tensor(1.0), torch.tensor(2.0), 0.4).item() == torch.tensor(1.8).item()
    assert supervised_loss(1.0, 2.0, 0.4) == 1.8
