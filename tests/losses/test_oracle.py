"""Our losses agree with segmentation_models_pytorch where the definitions match; other tests show the differences."""

import pytest
import torch
from segmentation_models_pytorch import losses as smp

from tests.losses.batches import CLASSES, IGNORE, WEIGHTS, batch, build, weighted


def test_dice_equals_theirs_if_every_class_is_present() -> None:
    logits, masks = batch((23, 31))
    theirs = smp.DiceLoss("multiclass", from_logits=True, ignore_index=IGNORE)
    torch.testing.assert_close(build("dice")(logits, masks), theirs(logits, masks.long()), rtol=1e-9, atol=0)
    with_weights = smp.DiceLoss("multiclass", ignore_index=IGNORE, class_weights=list(WEIGHTS.values()))
    torch.testing.assert_close(weighted("dice")(logits, masks), with_weights(logits, masks.long()), rtol=1e-6, atol=0)


def test_dice_gradients_equal_theirs() -> None:
    logits, masks = batch((23, 31))
    theirs = smp.DiceLoss("multiclass", ignore_index=IGNORE)(logits, masks.long())
    (gradient,) = torch.autograd.grad(build("dice")(logits, masks), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, logits)[0])


def test_their_dice_treats_absent_classes_as_learned_and_ours_leaves_them_out() -> None:
    logits, masks = batch((23, 31))
    masks[masks == 3] = 2
    theirs = smp.DiceLoss("multiclass", ignore_index=IGNORE)(logits, masks.long())
    assert theirs.item() == pytest.approx(build("dice")(logits, masks).item() * 3 / 4)


def test_cross_entropy_equals_theirs_if_nothing_is_ignored() -> None:
    logits, masks = batch((23, 31))
    masks[masks == IGNORE] = 0
    theirs = smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=IGNORE)
    torch.testing.assert_close(build("cross_entropy")(logits, masks), theirs(logits, masks.long()))


def test_their_cross_entropy_divides_by_ignored_pixels_too_and_ours_does_not() -> None:
    logits, masks = batch((23, 31))
    theirs = smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=IGNORE)(logits, masks.long())
    annotated = (masks != IGNORE).double().mean()
    torch.testing.assert_close(build("cross_entropy")(logits, masks) * annotated, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_of_two_classes_equals_their_binary_loss(gamma: float) -> None:
    """Their loss compares one class with the rest. For two classes, a softmax equals the sigmoid of the difference."""
    logits, masks = batch((23, 31))
    with torch.no_grad():
        logits[:, 2:] = -1000  # this rules out two of the four classes
    masks[(masks != IGNORE) & (masks > 1)] = 1
    theirs = smp.FocalLoss("binary", gamma=gamma, ignore_index=IGNORE)
    expected = theirs(logits[:, 1] - logits[:, 0], masks.long())
    torch.testing.assert_close(build("focal", focal_gamma=gamma)(logits, masks), expected, rtol=1e-6, atol=0)


def test_their_multiclass_focal_loss_is_a_different_function() -> None:
    """Their loss compares each class with the rest by sigmoids; our loss uses a softmax, so gradients differ for 4
    classes.
    """
    logits, masks = batch((23, 31))
    theirs = smp.FocalLoss("multiclass", gamma=2.0, ignore_index=IGNORE)(logits, masks.long())
    assert len(CLASSES) > 2
    assert theirs.item() != pytest.approx(build("focal", focal_gamma=2.0)(logits, masks).item(), rel=0.01)
