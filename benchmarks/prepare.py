"""What `prepare` costs relative to decoding alone, how that cost scales with dataset size, and how much data is
uploaded for a small new batch.

python benchmarks/prepare.py speed --data FOLDER --recipe recipes/camvid.yaml   relative to decoding alone
python benchmarks/prepare.py scale                                              10,000, 50,000 and 200,000 images
python benchmarks/prepare.py batch                                              50,000 images and 1% more
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from PIL import Image
from pipeline import ROOT, processor, run

from pspnet.config.params import load_params
from pspnet.dataset.store.pixels import encode_mask
from pspnet.dataset.store.prepared import PreparedDataset
from pspnet.raw.images import limited_pillow
from pspnet.raw.inventory import take_inventory
from pspnet.raw.validation import check as check_pair
from pspnet.stages import prepare
from pspnet.tracking.run import StageRun

SIZES = (10_000, 50_000, 200_000)
LOOSE_UP_TO = 10_000  # images; larger sets are stored in archives, as the docs recommend
PER_FOLDER = 1000
PER_ARCHIVE = 10_000
SIDE_PX = 96
TURNS = 7
ENOUGH_PAIRS = 300  # to process in each turn; a smaller set is processed several times
POLL_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "scale", "batch"])
    parser.add_argument("--data", type=Path, action="append", default=[], help="for `speed`: folder to use as data/raw")
    parser.add_argument("--recipe", type=Path, action="append", default=[], help="for `speed`: recipe for that data")
    parser.add_argument("--images", type=int, nargs="*", default=SIZES, help="for `scale`")
    arguments = parser.parse_args()
    os.environ["PSPNET_TRACKING"] = "off"
    print(f"{processor()}, {os.cpu_count()} cores\n")
    with tempfile.TemporaryDirectory() as folder:
        match arguments.what:
            case "speed":
                speed(list(zip(arguments.data, arguments.recipe, strict=True)), Path(folder))
            case "scale":
                scale(arguments.images, Path(folder))
            case "batch":
                batch(Path(folder))


def speed(sets: list[tuple[Path, Path]], folder: Path) -> None:
    """Print medians over several turns in one process. `prepare` is timed from finding the files to writing the report.
    The shares are medians of each turn's shares: if the machine's speed changes, it changes for all three steps.
    """
    print("| set | pairs | decoded a second | checked | share | prepared | share |\n|---|--:|--:|--:|--:|--:|--:|")
    for data, recipe in sets:
        params = load_params(recipe)
        raw = take_inventory(params.dataset, params.prepare, data)
        pairs = [sample for sample in raw.samples if sample.mask]

        def decode(pairs: Any = pairs, data: Path = data) -> None:
            for sample in pairs:
                for path in (sample.image, sample.mask.path):
                    with Image.open(io.BytesIO((data / path).read_bytes())) as image:
                        np.asarray(image.convert("RGB") if path == sample.image else image)

        def check(raw: Any = raw, pairs: Any = pairs) -> None:
            with limited_pillow(raw.rules.max_pixels):  # as `prepare` does for each piece
                for sample in pairs:
                    check_pair(sample, files=raw.files, rules=raw.rules)

        def whole(data: Path = data, params: Any = params) -> None:
            prepare.run(
                params.dataset, params.prepare, raw=data, out=folder / "out", checkpoints=folder / "state",
                run=StageRun(), tick=lambda *_: None,
            )  # fmt: skip

        os.environ["PSPNET_PREPARE_PROCESSES"] = "1"
        times = max(1, ENOUGH_PAIRS // len(pairs))
        turns = np.array([[seconds(work, times) for work in (decode, check, whole)] for _ in range(TURNS)])
        rates, shares = np.median(len(pairs) / turns, axis=0), np.median(turns[:, :1] / turns, axis=0)
        print(f"| {recipe.stem} | {len(pairs):,} | {rates[0]:,.0f} | {rates[1]:,.0f} | {shares[1]:.0%} | "
              f"{rates[2]:,.0f} | {shares[2]:.0%} |", flush=True)  # fmt: skip


def seconds(work: Callable[[], None], times: int) -> float:
    """Call `work` this many times. Returns the seconds per call."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def scale(sizes: list[int], folder: Path) -> None:
    print(
        "| images | raw | seconds | images/s | largest process | all processes | dvc status |\n"
        "|--:|---|--:|--:|--:|--:|--:|"
    )
    for count in sizes:
        project = new_project(folder / f"{count}", shard_mb=32)
        as_archives = count > LOOSE_UP_TO
        draw(project / "data/raw", range(count), as_archives)
        dvc(project, "add", "--quiet", "data/raw")
        seconds, largest, together = measured(["dvc", "repro", "--quiet", "prepare"], project)
        started = time.monotonic()
        dvc(project, "status", "prepare")
        status = time.monotonic() - started
        where = f"{count // PER_ARCHIVE} archives" if as_archives else f"{2 * count:,} files"
        print(f"| {count:,} | {where} | {seconds:.0f} | {count / seconds:,.0f} | {largest / 1e6:.0f} MB | "
              f"{together / 1e6:.0f} MB | {status:.1f} s |", flush=True)  # fmt: skip
        shutil.rmtree(project)


def batch(folder: Path) -> None:
    count, more = 50_000, 500
    project = new_project(folder / "project", shard_mb=2)
    remote = folder / "remote"
    dvc(project, "remote", "add", "--quiet", "--default", "--force", "storage", str(remote))
    sent, splits = [], []
    for numbers, name in ((range(count), ""), (range(count, count + more), "delivery")):
        draw(project / "data/raw", numbers, False, name)
        dvc(project, "add", "--quiet", "data/raw")
        before = bytes_in(remote)
        dvc(project, "repro", "--quiet", "prepare")
        dvc(project, "push", "--quiet")
        sent.append(bytes_in(remote) - before)
        splits.append(PreparedDataset.open(project / "data/prepared").index().set_index("id")["split"])
    moved = int((splits[1][splits[0].index] != splits[0]).sum())
    print(f"{count:,} images: {sent[0] / 1e6:,.1f} MB of raw and prepared data pushed.")
    print(f"{more:,} more in a separate folder: {sent[1] / 1e6:,.1f} MB, {sent[1] / sent[0]:.1%}.")
    print(f"{moved} of the old images moved to a different split.")


def new_project(folder: Path, shard_mb: int) -> Path:
    """Create a clone with parameters for the images that `draw` creates."""
    run(["git", "clone", "--quiet", str(ROOT), str(folder)], ROOT)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["dataset"] |= {"classes": {"back": 0, "front": 1}, "group_pattern": "(.*)"}
    params["prepare"]["shard_mb"] = shard_mb
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def draw(raw: Path, numbers: range, as_archives: bool, name: str = "batch") -> None:
    """Write JPEGs of soft shapes and noise, each about 5 kB, with masks."""
    for start in range(numbers.start, numbers.stop, PER_ARCHIVE if as_archives else PER_FOLDER):
        own = numbers[start - numbers.start :][: PER_ARCHIVE if as_archives else PER_FOLDER]
        below = f"{name or 'batch'}{start:06d}"
        if as_archives:
            raw.mkdir(parents=True, exist_ok=True)
            with tarfile.open(raw / f"{below}.tar", "w") as archive:
                for path, data in pairs(own, below):
                    info = tarfile.TarInfo(path)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
            continue
        for kind in ("images", "masks"):
            (raw / kind / below).mkdir(parents=True)
        for path, data in pairs(own, below):
            (raw / path).write_bytes(data)


def pairs(numbers: range, below: str) -> Iterator[tuple[str, bytes]]:
    for number in numbers:
        random = np.random.default_rng(number)
        small = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
        soft = np.asarray(small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)).astype(np.int16)
        image = np.clip(soft + random.integers(-12, 13, soft.shape, np.int16), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        yield f"images/{below}/{number:06d}.jpg", file.getvalue()
        yield f"masks/{below}/{number:06d}.png", encode_mask((soft[..., 0] > 128).astype(np.uint8))


def measured(command: list[str], folder: Path) -> tuple[float, int, int]:
    """Run a command. Returns the elapsed seconds and two figures of peak memory in bytes: for the largest of the
    command's Python processes, and for all of them together.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=sys.stderr)
    largest = together = 0
    ended = threading.Event()
    watched = psutil.Process(process.pid)
    threading.Thread(target=lambda: (process.wait(), ended.set())).start()
    while not ended.wait(POLL_SECONDS):
        held = []
        for one in [watched, *_children(watched)]:
            try:
                words = one.cmdline()
                if any(
                    word.endswith("/pspnet") or "multiprocessing" in word for word in words
                ):  # skip DVC's own processes
                    held.append(one.memory_full_info().uss)
            except psutil.Error:
                continue
        largest, together = max([largest, *held]), max(together, sum(held))
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return time.monotonic() - started, largest, together


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def dvc(folder: Path, *words: str) -> None:
    subprocess.run(["dvc", *words], cwd=folder, env=environment(folder), check=True, stdout=sys.stderr)


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


if __name__ == "__main__":
    main()
