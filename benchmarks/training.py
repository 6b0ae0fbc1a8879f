"""Measures what a training step costs, part by part, compared with training the same network the straightforward way.

python benchmarks/training.py                                     R50, stride 8, 473 x 473, batch 2, 21 classes
python benchmarks/training.py --depth 18 --size 360 --batch 8
python benchmarks/training.py --batch 16 --compile --no-straightforward
python benchmarks/training.py --methods                           beside every semi-supervised method, each with as many
                                                                  images without masks as with masks

It needs only the training core, so it also runs on a bare machine with a GPU. The device is the best one available, or
the one that PSPNET_DEVICE specifies.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a bare machine has only the checkout, not the installed package

from pspnet.config.finetune import LossParams, MeanTeacherParams, PseudoLabelParams, UniMatchParams  # noqa: E402
from pspnet.config.optimizer import OptimizerParams  # noqa: E402
from pspnet.config.runtime import RuntimeParams  # noqa: E402
from pspnet.losses.segmentation import SegmentationLoss, build_loss, supervised_loss  # noqa: E402
from pspnet.model.backbone.preprocessing import IMAGENET  # noqa: E402
from pspnet.model.device import configure  # noqa: E402
from pspnet.model.network import Architecture, PSPNet, SupervisedPSPNet  # noqa: E402
from pspnet.semisup import METHODS  # noqa: E402
from pspnet.training.shared.optimizer import build_optimizer, gradient_norm  # noqa: E402
from pspnet.training.shared.runtime import autocast, compiled  # noqa: E402

TURNS = 3
PSEUDO_LABELS = {
    "decay": 0.99, "confidence": 0.9, "class_balance": 0.5, "warmup_share": 0.0, "ramp_share": 0.0, "weight": 1.0,
    "cutmix_probability": 0.5, "color_jitter": 0.5, "grayscale_probability": 0.2, "blur_probability": 0.5,
}  # fmt: skip
IGNORE = 255
IGNORED_SHARE = 0.05
AUXILIARY_WEIGHT = 0.4
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
# FLOP/s as stated by the vendors: bf16 without sparsity, fp32 without TF32. On other devices, the limit is measured.
STATED = {
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
}
MATRIX, CHANNELS = 4096, 512

Part = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, choices=[18, 34, 50, 101, 152], default=50)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--output-stride", type=int, choices=[8, 16, 32], default=8)
    parser.add_argument("--size", type=int, default=473, help="side of the square images, in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="runtime.compile")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="runtime.threads")
    parser.add_argument("--steps", type=int, default=3, help="steps timed in each turn, after one untimed step")
    parser.add_argument("--no-straightforward", action="store_true", help="measure only ours")
    parser.add_argument("--methods", action="store_true", help="measure ours and every semi-supervised method")
    parser.add_argument(
        "--way", choices=["ours", "straightforward", *METHODS], help=argparse.SUPPRESS
    )  # runs in a separate process
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments)))
        return
    ways = ["ours"] if arguments.no_straightforward or arguments.methods else ["straightforward", "ours"]
    ways += [name for name in METHODS if name != "none"] if arguments.methods else []
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way in ways:  # the ways alternate, so that if the machine slows down, it slows down both
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            turns[way].append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
    tell(arguments, turns)


def tell(arguments: argparse.Namespace, turns: dict[str, list[dict[str, Any]]]) -> None:
    first = turns["ours"][0]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{first['device']}, {arguments.threads} threads, {versions}")
    network = f"R{arguments.depth} with width {arguments.width:g}, stride {arguments.output_stride}"
    images = f"batch {arguments.batch} of {arguments.size} x {arguments.size} px, {arguments.classes} classes"
    ways = f"ours in {arguments.precision}{', compiled' if arguments.compile else ''}"
    print(f"{network}, {images}; {ways}; medians of {TURNS} turns of {arguments.steps} steps\n")
    parts = list(dict.fromkeys(part for own in turns.values() for part in own[0]["seconds"]))
    print(f"| | images/s | {' | '.join(f'{part}, s' for part in parts)} | peak memory | share of the limit |")
    print(f"|---|--:|{'--:|' * len(parts)}--:|--:|")
    rates = {way: [arguments.batch / sum(turn["seconds"].values()) for turn in own] for way, own in turns.items()}
    for way, own in turns.items():
        seconds = [statistics.median(turn["seconds"].get(part, 0.0) for turn in own) for part in parts]
        rate = statistics.median(rates[way])
        share = statistics.median(turn["flop"] / sum(turn["seconds"].values()) / turn["limit"] for turn in own)
        print(f"| {way} | {rate:.3g} | {' | '.join(f'{one:.3f}' for one in seconds)} | "
              f"{max(turn['peak_bytes'] for turn in own) / 1e9:.2f} GB | {share:.0%} |")  # fmt: skip
    limits = ", ".join(f"{way} {own[0]['limit'] / 1e12:.3g}" for way, own in turns.items())
    flops = ", ".join(f"{way} {own[0]['flop'] / 1e12:.3g}" for way, own in turns.items())
    print(f"\nTFLOP a step: {flops}; the limit in TFLOP/s ({first['limit_from']}): {limits}")
    for way in turns:
        if way != "ours":
            ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates[way], strict=True)]
            print(f"ours / {way}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of each part of a step, and the memory and FLOP that a step needs.

    This runs in a process that does nothing else.
    """
    precision = "fp32" if arguments.way == "straightforward" else arguments.precision
    runtime = RuntimeParams(seed=0, threads=arguments.threads, precision=precision, compile=arguments.compile)
    device = configure(runtime)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (arguments.batch, 3, arguments.size, arguments.size), dtype=torch.uint8).to(device)
    masks = torch.randint(0, arguments.classes, images[:, 0].shape, dtype=torch.uint8)
    masks[torch.rand(masks.shape) < IGNORED_SHARE] = IGNORE
    masks = masks.to(device)
    supervised = network(arguments).to(device)
    if arguments.way in METHODS:
        eager = runtime.model_copy(update={"compile": False})
        work = flop_of(semi_supervised(arguments.way, supervised, images, masks, eager, device))
        step = semi_supervised(arguments.way, supervised, images, masks, runtime, device)
    else:
        work = flop(supervised, images, runtime, device)
        step = (ours if arguments.way == "ours" else straightforward)(supervised, images, masks, runtime, device)
    seconds: dict[str, list[float]] = {name: [] for name in step}
    for number in range(arguments.steps + 1):
        for name, part in step.items():
            started = now(device)
            part()
            if number:
                seconds[name].append(now(device) - started)
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    limit, limit_from = limit_of(device, precision)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores",
        "seconds": {name: statistics.median(own) for name, own in seconds.items()},
        "peak_bytes": peak,
        "flop": work,
        "limit": limit,
        "limit_from": limit_from,
    }


def network(arguments: argparse.Namespace) -> SupervisedPSPNet:
    return SupervisedPSPNet(
        PSPNet(Architecture(arguments.depth, arguments.width, arguments.output_stride, arguments.classes, dropout=0.1))
    )


def ours(
    supervised: SupervisedPSPNet, images: Tensor, masks: Tensor, runtime: RuntimeParams, device: torch.device
) -> dict[str, Part]:
    """Return the parts of a step as pspnet/training/finetune.py runs them."""
    supervised.to(memory_format=torch.channels_last).train()
    logits_of = compiled(supervised, runtime)
    loss_of, optimizer = loss_and_optimizer(supervised, device)
    held: dict[str, Any] = {}

    def preprocess() -> None:
        held["inputs"] = IMAGENET(images)

    def forward() -> None:
        with autocast(device, runtime):
            held["logits"] = logits_of(held["inputs"])

    def loss() -> None:
        main, auxiliary = (loss_of(logits, masks) for logits in held["logits"])
        held["loss"] = supervised_loss(main, auxiliary, AUXILIARY_WEIGHT)

    def update() -> None:
        gradient_norm(supervised)
        optimizer.step()

    parts = {"preprocessing": preprocess, "forward": forward, "loss": loss}
    return {**parts, "backward": backward(held, optimizer), "optimizer": update}


def loss_and_optimizer(
    supervised: SupervisedPSPNet, device: torch.device
) -> tuple[SegmentationLoss, torch.optim.Optimizer]:
    params = LossParams.model_construct(kind="cross_entropy", class_weights="none")
    classes = tuple(map(str, range(supervised.network.architecture.classes)))
    loss_of = build_loss(params, classes, [1] * len(classes), IGNORE, False, device)
    published = OptimizerParams.model_construct(
        kind="sgd", learning_rate=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
        decay_norms_and_biases=True,
    )  # fmt: skip
    return loss_of, build_optimizer(published, [(supervised.parameters(), 1.0)])


def semi_supervised(
    kind: str,
    supervised: SupervisedPSPNet,
    images: Tensor,
    masks: Tensor,
    runtime: RuntimeParams,
    device: torch.device,
) -> dict[str, Part]:
    """The same with as many images without masks: teacher, CutMix, and all views in one pass."""
    supervised.to(memory_format=torch.channels_last).train()
    method = METHODS[kind](supervised, IMAGENET, pseudo_labels(kind, len(images)), IGNORE)
    loss_of, optimizer = loss_and_optimizer(supervised, device)
    logits_of = compiled(method, runtime)
    box = torch.zeros_like(masks, dtype=torch.bool)
    box[:, : masks.shape[1] // 2, : masks.shape[2] // 2] = True
    batch = {"image": images, "mask": masks, "weak": images, "inside": torch.ones_like(box)}
    for number in range(method.strong_views):
        batch |= {f"strong_{number}": images, f"box_{number}": box}
    held: dict[str, Any] = {}

    def label() -> None:
        with autocast(device, runtime):
            held["batch"] = method.label(batch, lambda counts: counts)

    def forward() -> None:
        with autocast(device, runtime):
            held["logits"] = logits_of(held["batch"])

    def loss() -> None:
        main, auxiliary, streams = held["logits"]
        total = supervised_loss(loss_of(main, masks), loss_of(auxiliary, masks), AUXILIARY_WEIGHT)
        for name, logits in streams.items():
            total = total + method.streams[name] * loss_of.total(logits, held["batch"][f"{name}_mask"]) / masks.numel()
        held["loss"] = total

    def update() -> None:
        gradient_norm(supervised)
        optimizer.step()
        method.after_step(1000, lambda statistics: None)

    parts = {"pseudo labels": label, "forward": forward, "loss": loss}
    return {**parts, "backward": backward(held, optimizer), "optimizer": update}


def pseudo_labels(kind: str, images: int) -> PseudoLabelParams:
    settings: dict[str, Any] = {"kind": kind, "images_per_step": images, **PSEUDO_LABELS}
    if kind == "unimatch":
        return UniMatchParams(feature_dropout=0.5, **settings)
    return MeanTeacherParams(**settings)


def straightforward(
    supervised: SupervisedPSPNet, images: Tensor, masks: Tensor, runtime: RuntimeParams, device: torch.device
) -> dict[str, Part]:
    """Return the parts of a step with torch's default fp32 and memory layout, and full-size logits in the loss."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True
    supervised.train()
    optimizer = torch.optim.SGD(supervised.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    mean, std = (torch.tensor(own, device=device).view(1, 3, 1, 1) for own in (IMAGENET.mean, IMAGENET.std))
    held: dict[str, Any] = {}

    def preprocess() -> None:
        held["inputs"] = (images.float() / 255 - mean) / std

    def forward() -> None:
        held["logits"] = [
            F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
            for logits in supervised(held["inputs"])
        ]

    def loss() -> None:
        main, auxiliary = (F.cross_entropy(logits, masks.long(), ignore_index=IGNORE) for logits in held["logits"])
        held["loss"] = main + AUXILIARY_WEIGHT * auxiliary

    parts = {"preprocessing": preprocess, "forward": forward, "loss": loss}
    return {**parts, "backward": backward(held, optimizer), "optimizer": optimizer.step}


def backward(held: dict[str, Any], optimizer: torch.optim.Optimizer) -> Part:
    def run() -> None:
        optimizer.zero_grad()
        held.pop("loss").backward()
        held.clear()

    return run


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def flop(supervised: SupervisedPSPNet, images: Tensor, runtime: RuntimeParams, device: torch.device) -> float:
    """Return the FLOP of a step's convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter, autocast(device, runtime):
        sum(logits.sum() for logits in supervised.eval()(IMAGENET(images[:1]))).backward()
    supervised.zero_grad()
    return float(counter.get_total_flops()) * len(images)


def flop_of(step: dict[str, Part]) -> float:
    """The same for a step given by its parts."""
    with FlopCounterMode(display=False) as counter:
        for part in step.values():
            part()
    return float(counter.get_total_flops())


def limit_of(device: torch.device, precision: str) -> tuple[float, str]:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if stated := [limits[precision] for known, limits in STATED.items() if known in name]:
            return stated[0], "stated by the vendor"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.rand(MATRIX, MATRIX, device=device).to(dtype)
    features = torch.rand(1, CHANNELS, 64, 64, device=device).to(dtype, memory_format=torch.channels_last)
    kernels = torch.rand(CHANNELS, CHANNELS, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    works = [
        (2 * MATRIX**3, lambda: matrix @ matrix),
        (2 * 64**2 * CHANNELS**2 * 9, lambda: F.conv2d(features, kernels, padding=1)),
    ]
    rates = []
    for operations, work in works:
        for _ in range(4):
            started = now(device)
            work()
            rates.append(operations / (now(device) - started))
    return max(rates), "the faster of a large matrix product and a 3 x 3 convolution"


if __name__ == "__main__":
    main()
