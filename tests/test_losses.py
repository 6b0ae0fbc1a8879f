import torch
from torch.nn import functional as F

from pspnet.losses import cross_entropy, supervised_loss

IGNORE = 255


def test_cross_entropy_of_uniform_logits_is_log_of_the_classes() -> None:
    masks = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert torch.isclose(cross_entropy(torch.zeros(1, 4, 2, 2), masks, IGNORE), torch.tensor(4.0).log())


def test_ignored_pixels_change_neither_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    masks = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    masks[:, :2] = IGNORE
    loss = cross_entropy(logits, masks, IGNORE)
    assert torch.isclose(loss, F.cross_entropy(logits[:, :, 2:], masks[:, 2:].long()))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, :, :2].any()
    assert gradient[:, :, 2:].any()


def test_a_batch_without_annotation_gives_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 2, 2), IGNORE, dtype=torch.uint8), IGNORE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_auxiliary_loss_counts_by_its_weight() -> None:
    assert supervised_loss(torch.tensor(1.0), torch.tensor(2.0), 0.4).item() == torch.tensor(1.8).item()
