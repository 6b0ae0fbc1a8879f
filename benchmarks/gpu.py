"""Measures how the training core performs on a GPU, with one command, within eight minutes.

python benchmarks/gpu.py --out gpu-results
python benchmarks/gpu.py --out gpu-results --data FOLDER --recipe recipes/camvid.yaml     plus a small real training run

It needs torch 2.6 or later and the training core's packages, but no network. Each part is a process with its own
time limit: a part that fails or takes too long says so in its row, and the others continue. `gpu.json` and `gpu.md` are
rewritten after each part. Without a GPU, or with --toy, every part runs at a toy size. That tests this program, but the
figures mean nothing.
"""

import argparse
import json
import math
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a bare machine has only the checkout, not the installed package

from training import flop, network, now, ours  # noqa: E402

from pspnet.config.params import Params  # noqa: E402
from pspnet.config.reading import read_yaml, validate  # noqa: E402
from pspnet.config.runtime import RuntimeParams  # noqa: E402
from pspnet.dataset.augmentation import Augmentation  # noqa: E402
from pspnet.dataset.store.prepared import PreparedDataset  # noqa: E402
from pspnet.dataset.training_samples import TrainingCrops  # noqa: E402
from pspnet.demo.streets import synthesize  # noqa: E402
from pspnet.model.backbone.digest import digest  # noqa: E402
from pspnet.model.backbone.preprocessing import IMAGENET, Preprocessing  # noqa: E402
from pspnet.model.backbone.pretrained import PretrainedBackbone, random_backbone  # noqa: E402
from pspnet.model.device import configure  # noqa: E402
from pspnet.prediction.image.predictor import Member, Predictor  # noqa: E402
from pspnet.prediction.image.protocol import PredictionProtocol  # noqa: E402
from pspnet.stages import evaluate, finetune, prepare  # noqa: E402
from pspnet.tracking.run import StageRun  # noqa: E402
from pspnet.training.shared.distributed import Peers  # noqa: E402
from pspnet.training.shared.loading import Stream, load_batches  # noqa: E402
from pspnet.training.shared.runtime import autocast, loader_workers  # noqa: E402

ALL_SECONDS = 480.0
TOY_SECONDS = 600.0  # the machine that runs the tests may be slow and busy
STEPS = 8  # number of steps timed for each batch size
GAIN = 1.02  # doubling the batch must speed up training by this factor to be worth the memory
CLASSES = 21
IGNORE = 255
FULL = {
    "depth": 50, "width": 1.0, "size": 473, "batches": (8, 16, 32, 64, 128), "matrix": 8192, "images": 64,
    "threads": min(8, os.cpu_count() or 1),
}  # fmt: skip
# Use one thread: the threads of a process wait for each other while something else is running, such as other tests.
TOY = {
    "depth": 18, "width": 0.125, "size": 65, "batches": (2, 4), "matrix": 256, "images": 2, "threads": 1,
}  # fmt: skip

Measured = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write: gpu.json, gpu.md")
    parser.add_argument(
        "--data", type=Path, help="folder to use as data/raw: prepare it, train on it, and evaluate on its test split"
    )
    parser.add_argument("--recipe", type=Path, help="params for --data (default: the demo's)")
    parser.add_argument("--toy", action="store_true", help="use toy sizes on any device")
    # These options are for the processes that this program starts.
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--training", choices=("alone", "killed", "resumed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.toy |= not torch.cuda.is_available()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.training:
        train(arguments)
        return
    if arguments.part:
        work, _ = PARTS[arguments.part]
        measured = work(arguments)
        (arguments.out / f"{arguments.part}.part.json").write_text(json.dumps(measured))
        return
    deadline = time.monotonic() + (math.inf if arguments.toy else ALL_SECONDS)
    results: dict[str, Any] = {"machine": machine(), "toy": arguments.toy, "parts": {}}
    for name, (_, seconds) in PARTS.items():
        if name == "learning" and not arguments.data:
            continue
        limit = TOY_SECONDS if arguments.toy else min(seconds, deadline - time.monotonic())
        results["parts"][name] = run(name, limit, arguments)
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "gpu.md").write_text(table(results))
    print(table(results))


def machine() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def run(name: str, seconds: float, arguments: argparse.Namespace) -> Measured:
    """Run a part. Returns what it measured, or why it failed. Leaves none of its processes running."""
    result, log = arguments.out / f"{name}.part.json", arguments.out / f"{name}.log"
    result.unlink(missing_ok=True)
    if seconds <= 0:
        return {"error": f"None of the {ALL_SECONDS:.0f} s was left."}
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--part", name],
            stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        )  # fmt: skip
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"It did not finish within {seconds:.0f} s."}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    took = {"seconds": round(time.monotonic() - started, 1)}
    if status or not result.exists():
        lines = log.read_text(errors="replace").strip().splitlines()
        return {"error": f"It ended with {status}: {lines[-1] if lines else 'no message'}"[:500], **took}
    return {**json.loads(result.read_text()), **took}


def sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    return TOY if arguments.toy else FULL


def runtime_of(arguments: argparse.Namespace, precision: str, compile_it: bool = False) -> RuntimeParams:
    threads = sizes(arguments)["threads"]
    return RuntimeParams(seed=0, threads=threads, precision=precision, compile=compile_it)


def matrix(arguments: argparse.Namespace) -> Measured:
    """Measure the fastest bf16 product of two square matrices, the limit that the other parts are compared with."""
    device, side = configure(runtime_of(arguments, "bf16")), sizes(arguments)["matrix"]
    best = 0.0
    for length in (side // 2, side):
        left, right = (torch.randn(length, length, device=device).to(torch.bfloat16) for _ in range(2))
        seconds = [timed(lambda left=left, right=right: left @ right, device) for _ in range(20)]
        best = max(best, 2 * length**3 / statistics.median(seconds[5:]))
    return {"tflop_per_second": best / 1e12}


def timed(work: Callable[[], object], device: torch.device) -> float:
    started = now(device)
    work()
    return now(device) - started


def eager(arguments: argparse.Namespace) -> Measured:
    return training(arguments, sizes(arguments)["batches"], compile_it=False)


def compiled(arguments: argparse.Namespace) -> Measured:
    """Measure compiled training at the batch size that is best without compiling. Only one size is tried, because each
    compilation takes a minute.
    """
    if arguments.toy:
        # This backend avoids the C++ compiler, which takes minutes.
        torch.compile = partial(torch.compile, backend="aot_eager")
    before = arguments.out / "eager.part.json"
    batches = sizes(arguments)["batches"]
    best = json.loads(before.read_text())["batch"] if before.exists() else batches[len(batches) // 2]
    return training(arguments, [best], compile_it=True)


def training(arguments: argparse.Namespace, batches: Sequence[int], compile_it: bool) -> Measured:
    """Measure fine-tuning steps at growing batch sizes, until memory is full or a larger batch trains no faster."""
    runtime = runtime_of(arguments, "bf16", compile_it)
    device = configure(runtime)
    tried: dict[int, dict[str, float]] = {}
    best = 0
    for batch in batches:
        try:
            tried[batch] = steps(arguments, batch, runtime, device)
        except torch.OutOfMemoryError:
            break
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if best and tried[batch]["images_per_second"] < GAIN * tried[best]["images_per_second"]:
            break
        best = batch
    if not best:
        raise SystemExit(f"Not even a batch of {batches[0]} fits into memory.")
    return {"batch": best, **tried[best], "tried": tried}


def steps(arguments: argparse.Namespace, batch: int, runtime: RuntimeParams, device: torch.device) -> dict[str, float]:
    size = sizes(arguments)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size["size"], size["size"]), dtype=torch.uint8)
    masks = torch.randint(0, CLASSES, images[:, 0].shape, dtype=torch.uint8).to(device)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    supervised = network(architecture(arguments)).to(device)
    work = flop(supervised, images, runtime, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    parts = ours(supervised, images, masks, runtime, device)
    seconds = [sum(timed(part, device) for part in parts.values()) for _ in range(3 + STEPS)]
    second = statistics.median(seconds[3:])
    return {
        "images_per_second": batch / second,
        "tflop_per_second": work / second / 1e12,
        "peak_gb": peak_bytes(device) / 1e9,
        "first_step_seconds": seconds[0],
    }


def architecture(arguments: argparse.Namespace) -> argparse.Namespace:
    size = sizes(arguments)
    return argparse.Namespace(depth=size["depth"], width=size["width"], output_stride=8, classes=CLASSES)


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def loader(arguments: argparse.Namespace) -> Measured:
    """Measure augmented crops per second from the loader's processes, with nothing else running."""
    size = sizes(arguments)
    dataset = PreparedDataset.open(synthetic(arguments.out / "loader", images=40, labeled=40))
    augmentation = Augmentation(
        height_px=size["size"], width_px=size["size"], scale_min=0.5, scale_max=2.0, rotation_degrees=10.0,
        flip_probability=0.5, blur_probability=0.5, color_jitter=0.0, fill=(0, 0, 0), ignore=IGNORE,
    )  # fmt: skip
    crops = TrainingCrops(dataset.reader(), dataset.annotated("train"), augmentation, 0)
    batch = min(16, len(crops))
    warm_up, counted = 2 * max(1, loader_workers()), 4 if arguments.toy else 200
    peers = Peers(0, 1, torch.device("cpu"))
    batches = load_batches([Stream(crops, len(crops), batch)], 0, 0, warm_up + counted, peers)
    for _ in range(warm_up):
        next(batches)
    started = time.perf_counter()
    for _ in range(counted):
        next(batches)
    rate = counted * batch / (time.perf_counter() - started)
    batches.close()
    return {"images_per_second": rate, "processes": loader_workers()}


def logits(arguments: argparse.Namespace) -> Measured:
    """Measure how far bf16 logits are from fp32 logits, when both are as large as those of a trained network."""
    size = sizes(arguments)
    device = configure(runtime_of(arguments, "fp32"))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, size["size"], size["size"]), dtype=torch.uint8, device=device)
    psp = network(architecture(arguments)).network.to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        psp.train()(IMAGENET(images))  # give BatchNorm the statistics of these images
        psp.eval()
        exact = psp(IMAGENET(images))
        with autocast(device, runtime_of(arguments, "bf16")):
            rough = psp(IMAGENET(images)).float()
    return {
        "relative_error": float((rough - exact).norm() / exact.norm()),
        "same_class": float((rough.argmax(1) == exact.argmax(1)).float().mean()),
    }


def resume(arguments: argparse.Namespace) -> Measured:
    """Compare an undisturbed training run with one that is killed halfway by SIGKILL and started again."""
    folder = arguments.out / "resume"
    synthetic(folder, images=24, labeled=24)
    backbone = folder / "backbone"
    backbone.mkdir()
    PretrainedBackbone("none", 18, 0.25, Preprocessing((0.5,) * 3, (0.25,) * 3), {}).save(
        random_backbone(18, 0.25, 8, seed=0), backbone
    )
    for training, status in (("alone", 0), ("killed", -signal.SIGKILL), ("resumed", 0)):
        ended = subprocess.run([sys.executable, __file__, "--out", arguments.out, "--training", training], check=False)
        if ended.returncode != status:
            raise SystemExit(f"The training '{training}' ended with {ended.returncode}.")
    alone, resumed = (digest(folder / name / "bundle") for name in ("alone", "killed"))
    return {"equal": alone == resumed}


def train(arguments: argparse.Namespace) -> None:
    """Train to the end, or until the run is killed halfway. The resumed run continues where the killed run stopped."""
    os.environ["PSPNET_CHECKPOINT_SECONDS"] = "0"
    folder = arguments.out / "resume"
    own = folder / ("alone" if arguments.training == "alone" else "killed")
    params = demo_params(
        backbone={"width": 0.25}, runtime={"precision": "bf16", "threads": 1},
        finetune={"epochs": 2, "batch_size": 4, "output_stride": 8, "crop_height_px": 64, "crop_width_px": 64},
    )  # fmt: skip

    def tick(done: int, total: int, note: str) -> None:
        if arguments.training == "killed" and done >= total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune.run(
        params.backbone, params.finetune, params.runtime, prepared=folder / "prepared", pretrained=folder / "backbone",
        out=own / "bundle", history=own / "history.csv", checkpoints=own / "checkpoints", run=StageRun(), tick=tick,
    )  # fmt: skip


def prediction(arguments: argparse.Namespace) -> Measured:
    """Measure images per second, from bytes in memory to masks in memory. Decoding is not included."""
    size = sizes(arguments)
    device = configure(runtime_of(arguments, "bf16"))
    member = Member(network(architecture(arguments)).network.to(device, memory_format=torch.channels_last), IMAGENET)
    predictor = Predictor([member], PredictionProtocol(1024, 256, (1.0,), flip=False), device, "bf16")
    images = np.random.default_rng(0).integers(0, 256, (size["images"], size["size"], size["size"], 3), np.uint8)
    best: Measured = {"images_per_second": 0.0}
    for batch in (1, 2, 4, 8, 16, 32):
        if batch > len(images):
            break
        parts = np.array_split(images, len(images) // batch)
        turns = [sum(timed(partial(predictor.predict, part), device) for part in parts) for _ in range(4)]
        seconds = statistics.median(turns[1:])
        if (rate := len(images) / seconds) > best["images_per_second"]:
            best = {"images_per_second": rate, "batch": batch}
    return best


def learning(arguments: argparse.Namespace) -> Measured:
    """Train with the data's own recipe, from a random backbone because no weights are available.
    Returns the test mIoU.
    """
    folder = fresh(arguments.out / "learning")
    params = validate(Params, read_yaml(arguments.recipe or ROOT / "params.yaml"), str(arguments.recipe))
    if arguments.toy:
        params = params.model_copy(update={"finetune": params.finetune.model_copy(update={"epochs": 1})})
    backbone, runtime = params.backbone, params.runtime
    prepared = prepare_into(folder, params, arguments.data)
    dataset = PreparedDataset.open(prepared)
    (folder / "backbone").mkdir()
    pretrained = PretrainedBackbone(
        "none", backbone.depth, backbone.width, Preprocessing(dataset.mean, dataset.std), {}
    )
    pretrained.save(
        random_backbone(backbone.depth, backbone.width, params.finetune.output_stride, 0), folder / "backbone"
    )
    started = time.monotonic()
    finetune.run(
        backbone, params.finetune, runtime, prepared=prepared, pretrained=folder / "backbone", out=folder / "bundle",
        history=folder / "history.csv", checkpoints=folder / "checkpoints", run=StageRun(), tick=quiet,
    )  # fmt: skip
    trained = time.monotonic() - started
    summary = evaluate.run(
        params.evaluate, params.predict, runtime, prepared=prepared, bundle=folder / "bundle",
        histories=[folder / "history.csv"], out=folder / "report", metrics=folder / "metrics.json", run=StageRun(),
        tick=quiet,
    )  # fmt: skip
    return {"test_mean_iou": summary["mean_iou"], "training_seconds": trained, "epochs": params.finetune.epochs}


def synthetic(folder: Path, images: int, labeled: int) -> Path:
    """Prepare street scenes drawn by the demo."""
    fresh(folder)
    synthesize(folder / "raw", images, labeled, 0, quiet)
    return prepare_into(folder, demo_params(dataset={"group_pattern": "(.*)"}), folder / "raw")


def prepare_into(folder: Path, params: Params, raw: Path) -> Path:
    prepare.run(
        params.dataset, params.prepare, raw=raw, out=folder / "prepared", checkpoints=folder / "state", run=StageRun(),
        tick=quiet,
    )  # fmt: skip
    return folder / "prepared"


def demo_params(**changes: dict[str, Any]) -> Params:
    content = read_yaml(ROOT / "params.yaml")
    for section, values in changes.items():
        content[section] |= values
    return validate(Params, content, "params.yaml")


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def quiet(done: int, total: int, note: str) -> None:
    """A progress callback that shows nothing."""


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table of what was measured, what was not, and why."""
    parts, about = results["parts"], results["machine"]
    lines = [f"{about['device']}, {about['cores']} cores, Python {about['python']}, torch {about['torch']}", ""]
    if results["toy"]:
        lines += ["Toy sizes: these figures say nothing about a GPU.", ""]
    lines += ["| part | measured | seconds |", "|---|---|--:|"]
    for name, part in parts.items():
        said = f"**failed**: {part['error']}" if "error" in part else TOLD[name](part, parts)
        lines.append(f"| {name} | {said} | {part.get('seconds', '')} |")
    return "\n".join(lines) + "\n"


def told_training(part: Measured, parts: dict[str, Measured]) -> str:
    limit = parts.get("matrix", {}).get("tflop_per_second")
    share = f", {part['tflop_per_second'] / limit:.0%} of the matrix peak" if limit else ""
    others = ", ".join(f"{batch}: {one['images_per_second']:.4g}" for batch, one in part["tried"].items())
    return (
        f"{part['images_per_second']:.4g} images/s at batch {part['batch']} (batch: images/s {others}){share}; "
        f"peak {part['peak_gb']:.1f} GB; first step {part['first_step_seconds']:.1f} s"
    )


def told_loader(part: Measured, parts: dict[str, Measured]) -> str:
    rates = {name: parts[name]["images_per_second"] for name in ("eager", "compiled") if "error" not in parts[name]}
    shares = "".join(
        f"; {part['images_per_second'] / rate:.2f} times what {name} takes" for name, rate in rates.items()
    )
    return f"{part['images_per_second']:.4g} images/s from {part['processes']} processes{shares}"


# Each part's function and its time limit in seconds.
PARTS: dict[str, tuple[Callable[[argparse.Namespace], Measured], float]] = {
    "matrix": (matrix, 40),
    "eager": (eager, 100),
    "compiled": (compiled, 150),
    "loader": (loader, 50),
    "logits": (logits, 40),
    "resume": (resume, 100),
    "prediction": (prediction, 60),
    "learning": (learning, 200),
}
TOLD: dict[str, Callable[[Measured, dict[str, Measured]], str]] = {
    "matrix": lambda part, _: f"{part['tflop_per_second']:.4g} TFLOP/s in bf16",
    "eager": told_training,
    "compiled": told_training,
    "loader": told_loader,
    "logits": lambda part, _: (
        f"bf16 is {part['relative_error']:.2%} from fp32; {part['same_class']:.2%} of the pixels keep their class"
    ),
    "resume": lambda part, _: "killed and resumed: " + ("the same bytes" if part["equal"] else "**different bytes**"),
    "prediction": lambda part, _: f"{part['images_per_second']:.4g} images/s at batch {part['batch']}",
    "learning": lambda part, _: (
        f"test mIoU {part['test_mean_iou']:.3f} after {part['epochs']} epochs in {part['training_seconds']:.0f} s"
    ),
}

if __name__ == "__main__":
    main()
