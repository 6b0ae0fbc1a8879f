"""`pspnet export`: a bundle as a file for other runtimes, and how near the two are."""

from pathlib import Path

from pspnet import terminal
from pspnet.export import export as write


def export(bundle: Path, form: str, out: Path, tolerance: float) -> None:
    parities = write(bundle, form, out, tolerance)
    for parity in parities:
        images, height, width = parity.size
        terminal.err.print(
            f"{images} x {height} x {width} px: logits differ by at most {parity.difference:.1e}, "
            f"classes in {parity.other_class:.2%} of the pixels",
            markup=False,
        )
    terminal.out.print(str(out), markup=False)
