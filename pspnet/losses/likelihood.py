"""The functions of logits that losses need, computed for a few image rows at a time.

A batch's logits, enlarged to the size of the masks in float32, would be the largest tensor in training, and a
straightforward loss creates several of them. Here only a few rows exist at a time, and they are recomputed in the
backward pass. Every operation is a matrix product, a sum or a comparison. These are deterministic even on GPUs, unlike
the backward passes of bilinear upsampling and of a loss over a plane.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CPU_VALUES = 2**19  # logits processed at a time, few enough to fit into the CPU caches
GPU_VALUES = 2**23  # logits processed at a time, enough to keep a GPU busy


def negative_log_likelihood(logits: Tensor, masks: Tensor, align_corners: bool) -> Tensor:
    """(N, K, h, w), (N, H, W) -> (N, H, W): -log of the probability of the mask's class, for pixels that have a
    class.
    """
    nll: Tensor = _NegativeLogLikelihood.apply(logits, masks, align_corners)
    return nll


def class_sums(logits: Tensor, masks: Tensor, annotated: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K, h, w), (N, H, W), (N, H, W) -> 3 x (K): for each class, the sum of its probability over the annotated
    pixels, the same sum over its own pixels, and the number of its own pixels.
    """
    sums: tuple[Tensor, Tensor, Tensor] = _ClassSums.apply(logits, masks, annotated, align_corners)
    return sums


@torch.no_grad()
def most_likely(logits: Tensor, size: tuple[int, int], align_corners: bool) -> tuple[Tensor, Tensor]:
    """(N, K, h, w) -> 2 x (N, H, W): the class with the highest probability (uint8), and that probability."""
    classes = torch.empty(len(logits), *size, dtype=torch.uint8, device=logits.device)
    enlarged = _Enlarged(logits, classes, align_corners)
    probabilities = torch.empty(classes.shape, dtype=enlarged.dtype, device=logits.device)
    for strip, values in enlarged:
        probabilities[:, strip.rows], found = _softmax(values).max(dim=1)
        classes[:, strip.rows] = found.to(torch.uint8)
    return classes, probabilities


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, align_corners: bool) -> Tensor:
        enlarged = _Enlarged(logits, masks, align_corners)
        nll = logits.new_empty(masks.shape, dtype=enlarged.dtype)
        for strip, values in enlarged:
            own = masks[:, None, strip.rows].clamp(max=logits.shape[1] - 1).long()
            nll[:, strip.rows] = -values.log_softmax(1).gather(1, own)[:, 0]
        ctx.save_for_backward(logits, masks)
        ctx.align_corners = align_corners
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_nll: Tensor) -> tuple[Tensor, None, None]:
        logits, masks = ctx.saved_tensors
        enlarged = _Enlarged(logits, masks, ctx.align_corners)
        for strip, values in enlarged:  # d nll / d logit = softmax - 1 for the own class, softmax for the others
            gradient = _softmax(values).sub_(enlarged.is_own(strip).to(values.dtype))
            enlarged.pull_back(strip, gradient.mul_(of_nll[:, None, strip.rows]))
        return enlarged.gradient.to(logits.dtype), None, None


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, masks: Tensor, annotated: Tensor, align_corners: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        enlarged = _Enlarged(logits, masks, align_corners)
        given, own, pixels = logits.new_zeros(3, logits.shape[1], dtype=enlarged.dtype)
        for strip, values in enlarged:
            is_own = enlarged.is_own(strip)
            softmax = _softmax(values).mul_(annotated[:, None, strip.rows])
            given += softmax.sum((0, 2, 3))
            own += softmax.masked_fill_(~is_own, 0).sum((0, 2, 3))
            pixels += is_own.sum((0, 2, 3))
        ctx.save_for_backward(logits, masks, annotated)
        ctx.align_corners = align_corners
        ctx.mark_non_differentiable(pixels)
        return given, own, pixels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_given: Tensor, of_own: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, masks, annotated = ctx.saved_tensors
        enlarged = _Enlarged(logits, masks, ctx.align_corners)
        for strip, values in enlarged:  # d sum(v * softmax) / d logit = softmax * (v - sum(v * softmax))
            softmax = _softmax(values)
            of_softmax = annotated[:, None, strip.rows] * of_given[:, None, None]
            of_softmax += enlarged.is_own(strip) * of_own[:, None, None]
            of_softmax -= (of_softmax * softmax).sum(1, keepdim=True)
            enlarged.pull_back(strip, of_softmax.mul_(softmax))
        return enlarged.gradient.to(logits.dtype), None, None, None


def _softmax(values: Tensor) -> Tensor:
    return values.log_softmax(1).exp_()  # twice as fast as softmax on CPUs, except over the last dimension


class _Strip(NamedTuple):
    """Some image rows, the coarse rows they come from, and the matrix between them: (rows, coarse_rows)."""

    rows: slice
    coarse_rows: slice
    vertical: Tensor


Place = tuple[torch.dtype, torch.device]


@lru_cache(maxsize=32)  # training needs only the sizes of two heads, because all crops are the same size
def _enlargement(size: int, enlarged: int, align_corners: bool, place: Place) -> Tensor:
    """(enlarged, size): linear upsampling as a matrix. Its transpose maps gradients back."""
    dtype, device = place
    identity = torch.eye(size, dtype=dtype)
    matrix = F.interpolate(identity[None], enlarged, mode="linear", align_corners=align_corners)[0].T
    return matrix.contiguous().to(device)


@lru_cache(maxsize=32)
def _strips(height: int, size: int, enlarged: int, align_corners: bool, place: Place) -> tuple[_Strip, ...]:
    """Return strips of at most `height` rows that cover the image."""
    vertical = _enlargement(size, enlarged, align_corners, place)
    strips = []
    for first in range(0, enlarged, height):
        rows = slice(first, first + height)
        used = vertical[rows].any(0).nonzero()
        coarse_rows = slice(int(used[0]), int(used[-1]) + 1)
        strips.append(_Strip(rows, coarse_rows, vertical[rows, coarse_rows]))
    return tuple(strips)


class _Enlarged:
    """Enlarge the logits to the size of the masks, strip by strip, and map the gradient back."""

    def __init__(self, logits: Tensor, masks: Tensor, align_corners: bool) -> None:
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        self.gradient = torch.zeros(logits.shape, dtype=self.dtype, device=logits.device)
        self._logits, self._masks = logits.to(self.dtype).contiguous(), masks
        self._classes = torch.arange(logits.shape[1], dtype=masks.dtype, device=masks.device)[:, None, None]
        place = self.dtype, logits.device
        self._horizontal = _enlargement(logits.shape[3], masks.shape[2], align_corners, place)
        at_a_time = CPU_VALUES if logits.device.type == "cpu" else GPU_VALUES
        height = max(1, at_a_time // (logits.shape[0] * logits.shape[1] * masks.shape[2]))
        self._strips = _strips(height, logits.shape[2], masks.shape[1], align_corners, place)

    def __iter__(self) -> Iterator[tuple[_Strip, Tensor]]:
        """Yield each strip with its enlarged logits: (N, K, rows, W)."""
        for strip in self._strips:
            yield strip, strip.vertical @ (self._logits[:, :, strip.coarse_rows] @ self._horizontal.T)

    def is_own(self, strip: _Strip) -> Tensor:
        """(N, K, rows, W): whether the mask assigns the class to the pixel."""
        return self._masks[:, None, strip.rows] == self._classes

    def pull_back(self, strip: _Strip, gradient: Tensor) -> None:
        self.gradient[:, :, strip.coarse_rows] += (strip.vertical.T @ gradient) @ self._horizontal
