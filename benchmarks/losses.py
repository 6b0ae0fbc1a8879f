"""Measures time and memory of the losses alone, forward and backward, compared with straightforward cross-entropy.

python benchmarks/losses.py                                          two images of 473 x 473 px, 21 classes
python benchmarks/losses.py --device cuda --batch 16 --classes 150   a batch of ADE20K

Each loss is measured from one head's coarse logits in bf16 to the gradient of these logits. Memory is the peak
allocation, not counting logits and masks. The losses take turns in one process.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pspnet.config.finetune import LossParams  # noqa: E402
from pspnet.config.reading import read_yaml, validate  # noqa: E402
from pspnet.losses.segmentation import build_loss  # noqa: E402

IGNORE = 255
STRAIGHTFORWARD = "straightforward cross-entropy"
KINDS = ("cross_entropy", "focal", "ohem", "dice", "cross_entropy_dice")

Loss = Callable[[Tensor, Tensor], Tensor]


def straightforward(logits: Tensor, masks: Tensor) -> Tensor:
    full = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, masks.long(), ignore_index=IGNORE)


def losses(classes: int, device: torch.device) -> dict[str, Loss]:
    content = read_yaml(ROOT / "params.yaml")["finetune"]["loss"]
    names = tuple(str(number) for number in range(classes))
    ours = {}
    for kind in KINDS:
        params = validate(LossParams, {**content, "kind": kind}, "params.yaml")
        ours[kind] = build_loss(params, names, [1] * classes, IGNORE, align_corners=False, device=device)
    return {STRAIGHTFORWARD: straightforward, **ours}


def step(loss: Loss, logits: Tensor, masks: Tensor) -> None:
    torch.autograd.grad(loss(logits, masks), logits)


def seconds(loss: Loss, logits: Tensor, masks: Tensor) -> float:
    started = time.perf_counter()
    step(loss, logits, masks)
    if logits.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mb(loss: Loss, logits: Tensor, masks: Tensor) -> float:
    if logits.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, logits, masks)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(loss, logits, masks)
    in_use = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            in_use += event.nbytes()
            peak = max(peak, in_use)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--size", type=int, default=473, help="side of the images, in pixels")
    parser.add_argument("--output-stride", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    device = torch.device(wanted.device)
    torch.manual_seed(0)
    coarse = -(-wanted.size // wanted.output_stride)
    logits = torch.randn(wanted.batch, wanted.classes, coarse, coarse, device=device, dtype=torch.bfloat16)
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    masks = torch.randint(wanted.classes, (wanted.batch, wanted.size, wanted.size), device=device, dtype=torch.uint8)
    contenders = losses(wanted.classes, device)
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(wanted.turns + 1):
        for name, loss in contenders.items():
            measured = seconds(loss, logits, masks)
            if turn:  # the first turn only warms up
                took[name].append(measured)
    print(
        "| loss | median ms | least ms | of straightforward | peak MB | of straightforward |\n|---|--:|--:|--:|--:|--:|"
    )
    memory = {name: peak_mb(loss, logits, masks) for name, loss in contenders.items()}
    base = statistics.median(took[STRAIGHTFORWARD])
    for name, times in took.items():
        median = statistics.median(times)
        print(
            f"| {name} | {median * 1e3:.1f} | {min(times) * 1e3:.1f} | {median / base:.0%} | "
            f"{memory[name]:.1f} | {memory[name] / memory[STRAIGHTFORWARD]:.0%} |"
        )


if __name__ == "__main__":
    main()
