"""Times the whole pipeline from scratch, stage by stage, in a clone of this checkout, and prints a table.

Without arguments, it times the demo as `make demo` runs it. To time a recipe on other data:
python benchmarks/pipeline.py --recipe recipes/steel-defects.yaml --data FOLDER
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DEMO = ["pspnet", "synthesize", "data/raw", "--images", "600", "--labeled", "200", "--seed", "0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--data", type=Path, help="folder that becomes data/raw (default: the demo's images)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary, "clone")
        run(["git", "clone", "--quiet", str(ROOT), str(clone)], ROOT)
        shutil.copy(arguments.recipe, clone / "params.yaml")
        rows = []
        if arguments.data:
            shutil.copytree(arguments.data, clone / "data/raw")
        else:
            rows.append(("synthesize", run(DEMO, clone)))
        rows.append(("dvc add", run(["dvc", "add", "--quiet", "data/raw"], clone)))
        stages = yaml.safe_load((clone / "dvc.yaml").read_text())["stages"]
        rows += [(stage, run(["dvc", "repro", "--single-item", stage], clone)) for stage in stages]
        rows.append(("dvc repro, nothing to do", run(["dvc", "repro"], clone)))
        metrics = json.loads((clone / "reports/metrics.json").read_text())
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {arguments.recipe.name}\n")
    print("| step | seconds |\n|---|---|")
    rows.append(("all", sum(seconds for _, seconds in rows)))
    for step, seconds in rows:
        print(f"| {step} | {seconds:.1f} |")
    classes = ", ".join(f"{name} {iou:.3f}" for name, iou in metrics["class_iou"].items())
    print(f"\ntest mIoU {metrics['mean_iou']:.3f}, pixel accuracy {metrics['pixel_accuracy']:.3f}; IoU: {classes}")


def run(command: list[str], folder: Path) -> float:
    """Run a command and return the seconds it took. The command's output goes to standard error, as progress."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return time.monotonic() - started


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


if __name__ == "__main__":
    main()
