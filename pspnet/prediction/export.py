"""Exports a bundle as one file for other runtimes. The file is written only if its results match the bundle's.

The graph maps pixels to logits and includes the normalization, so callers cannot get the normalization wrong. The
metadata contains the bundle's classes, preprocessing, architecture and digest, under `pspnet`.
"""

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.pyramid import AverageBins
from pspnet.model.bundle import Bundle
from pspnet.model.network import PSPNet

FORMAT_VERSION = 1
# (N, H, W): the size of the traced example, then odd and smaller sizes, and other batch sizes.
SIZES = ((2, 128, 160), (1, 127, 161), (3, 97, 65), (1, 64, 48), (2, 33, 41))

Run = Callable[[Tensor], Tensor]  # (N, 3, H, W) uint8 -> (N, K, H, W) float32


@dataclass(frozen=True)
class Parity:
    """The differences between the outputs of the exported file and of the bundle at one size."""

    size: tuple[int, int, int]
    difference: float  # the largest difference of a logit, relative to the largest logit or to 1
    other_class: float  # the share of pixels for which the class differs


class Segmenter(nn.Module):
    """RGB images (N, 3, H, W) uint8 -> logits (N, K, H, W) float32."""

    def __init__(self, network: PSPNet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.preprocessing(images))  # type: ignore[no-any-return]


def export(bundle: Path, form: str, out: Path, tolerance: float) -> list[Parity]:
    """Write the bundle to `out` in `form`, one of FORMATS, if the results agree within `tolerance` at every size."""
    kind = FORMATS[form]
    if missing := [name for name in kind.packages if importlib.util.find_spec(name) is None]:
        found = f"needs {', '.join(missing)}, which cannot be imported"
        fix = "Install the extra: uv pip install -e '.[export]'"
        raise UserError(Problem(f"export --format {form}", found, fix=fix))
    if out.is_dir():
        raise UserError(Problem(str(out), "is a folder", "the file to write"))
    model = Bundle.load(bundle)
    segmenter = Segmenter(model.network, model.preprocessing).eval()
    with whole_file(out) as partial:
        kind.write(segmenter, json.dumps(_facts(model, digest(bundle))), partial)
        parities = list(compare(segmenter, kind.read(partial)))
        if too_far := [one for one in parities if not one.difference <= tolerance]:  # also catches NaN
            raise UserError([_problem(one, out, tolerance) for one in too_far])
    return parities


def compare(segmenter: Segmenter, run: Run) -> Iterator[Parity]:
    for number, (images, height, width) in enumerate(SIZES):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            expected, found = segmenter(pixels), run(pixels)
        difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1)
        other_class = (found.argmax(dim=1) != expected.argmax(dim=1)).float().mean()
        yield Parity((images, height, width), difference.item(), other_class.item())


def _problem(parity: Parity, out: Path, tolerance: float) -> Problem:
    images, height, width = parity.size
    found = f"would differ from the bundle by {parity.difference:.1e} on {images} images of {height} x {width} px"
    return Problem(str(out), found, f"at most {tolerance:.1e} (--tolerance)", "The file was not written.")


def _facts(model: Bundle, bundle_digest: str) -> dict[str, Any]:
    architecture = model.network.architecture
    return {
        "format_version": FORMAT_VERSION,
        "images": f"RGB, uint8, (N, 3, H, W), H and W above {architecture.output_stride}; the graph normalizes them",
        "logits": "float32, (N, K, H, W), in the order of the classes",
        "classes": model.classes,
        "colors": model.colors,
        "preprocessing": asdict(model.preprocessing),
        "architecture": asdict(architecture),
        "bundle": bundle_digest,
    }


def _dynamic() -> dict[str, dict[int, Any]]:
    any_length = torch.export.Dim.DYNAMIC
    return {"images": {0: any_length, 2: any_length, 3: any_length}}


def _example() -> tuple[Tensor]:
    images, height, width = SIZES[0]
    return (torch.zeros((images, 3, height, width), dtype=torch.uint8),)


def _write_onnx(segmenter: Segmenter, facts: str, path: Path) -> None:
    program = torch.onnx.export(
        segmenter,
        _example(),
        dynamo=True,
        dynamic_shapes=_dynamic(),
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["pspnet"] = facts
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Run:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(segmenter: Segmenter, facts: str, path: Path) -> None:
    """Write the pt2 file with torch's own pooling, which compilers recognize.

    Only the backward pass of torch's pooling is nondeterministic.
    """
    plain = copy.deepcopy(segmenter)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, AverageBins):
                setattr(module, name, nn.AdaptiveAvgPool2d(child.bins))
    program = torch.export.export(plain, _example(), dynamic_shapes=_dynamic())
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"pspnet": facts})


def _read_pt2(path: Path) -> Run:
    with path.open("rb") as file:
        return torch.export.load(file).module()


class Format(NamedTuple):
    packages: tuple[str, ...]
    write: Callable[[Segmenter, str, Path], None]
    read: Callable[[Path], Run]


FORMATS = {
    "onnx": Format(("onnx", "onnxruntime", "onnxscript"), _write_onnx, _read_onnx),
    "pt2": Format((), _write_pt2, _read_pt2),
}
