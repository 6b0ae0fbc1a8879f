"""Predicts one large image, from pixels to mask, confidence and overlay, and prints time and peak memory at each step.

python benchmarks/prediction.py                              10,000 x 10,000 px, a tiny network, one scale
python benchmarks/prediction.py --height 20000               twice the height; a window takes no more memory
python benchmarks/prediction.py --scales 0.5 1 1.5 --flip    several scales
python benchmarks/prediction.py --depth 50 --width 1         a real network
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pipeline import processor

from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.network import Architecture, PSPNet
from pspnet.prediction.image.predictor import Member, Predictor
from pspnet.prediction.image.protocol import PredictionProtocol
from pspnet.prediction.output_folder import Stamp, opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=10_000)
    parser.add_argument("--width-px", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--output-stride", type=int, default=8)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=256)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    architecture = Architecture(
        arguments.depth, arguments.width, arguments.output_stride, arguments.classes, dropout=0.1
    )
    device = torch.device(arguments.device)
    member = Member(PSPNet(architecture).to(device), Preprocessing((0.5,) * 3, (0.25,) * 3))
    protocol = PredictionProtocol(arguments.window, arguments.overlap, arguments.scales, arguments.flip)
    predictor = Predictor([member], protocol, device, arguments.precision)
    predictor.predict(np.zeros((1, arguments.window, arguments.window, 3), np.uint8))
    rows = [("a window", peak_mb(), 0.0)]

    shape = (arguments.height, arguments.width_px)
    gray = np.add.outer(*(np.arange(side, dtype=np.uint8) for side in shape))
    image = np.stack([gray, gray[:, ::-1], gray], axis=-1)
    rows.append(("the image", peak_mb(), 0.0))
    started = time.perf_counter()
    [prediction] = predictor.predict(image[None])
    rows.append(("its prediction", peak_mb(), time.perf_counter() - started))
    classes = tuple(f"class {number}" for number in range(arguments.classes))
    colors = tuple((number, 0, 255 - number) for number in range(arguments.classes))
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        with opened(Path(temporary, "out"), Path(temporary), {}, classes, colors) as folder:
            folder.add("large.png", "", Stamp(0, 0), image, prediction)
        rows.append(("its files", peak_mb(), time.perf_counter() - started))
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}")
    print(f"{shape[0]:,} x {shape[1]:,} px, {arguments.classes} classes; {protocol}\n")
    print("| up to | peak memory, MB | seconds |\n|---|--:|--:|")
    for name, megabytes, seconds in rows:
        print(f"| {name} | {megabytes:,.0f} | {f'{seconds:.1f}' if seconds else ''} |")
    print(f"\nAll probabilities at once would take {4 * arguments.classes * shape[0] * shape[1] / 1e6:,.0f} MB.")
    if device.type == "cuda":
        print(f"Peak memory on the device: {torch.cuda.max_memory_allocated() / 1e6:,.0f} MB.")


def peak_mb() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used * 1024 / 1e6


if __name__ == "__main__":
    main()
