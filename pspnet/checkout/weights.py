"""`pspnet weights import`: convert weights trained by another project to our formats."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pspnet.checkout.adding import dvc
from pspnet.checkout.foreign.checkpoints import Checkpoint, read_checkpoint
from pspnet.checkout.foreign.translation import ForeignWeights, adapt_preprocessing, import_weights
from pspnet.errors import Problem, UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_folder
from pspnet.model.backbone.facts import BUNDLE as BUNDLE_FACTS
from pspnet.model.backbone.pretrained import FACTS as BACKBONE_FACTS
from pspnet.model.backbone.pretrained import PretrainedBackbone
from pspnet.model.backbone.resnet import OutputStride
from pspnet.model.bundle import Bundle
from pspnet.raw.classes import default_color, read_classes

Color = tuple[int, int, int]
RGB = 3  # channels


@dataclass(frozen=True)
class Target:
    """What to create from a file, and where."""

    out: Path | None  # for the backbone
    bundle: Path | None
    classes: Path | None
    channels: int
    min_coverage: float
    output_stride: int
    align_corners: bool | None


def import_file(file: Path, project: str, target: Target, *, versioned: bool) -> None:
    """Convert a file to a backbone, a bundle or both. `versioned`: add the backbone to DVC, for use by the pipeline."""
    _check(target, versioned)
    if versioned:
        dvc("root")
    checkpoint = read_checkpoint(file)
    weights = import_weights(checkpoint, project, str(file))
    _print_coverage(file, weights)
    _check_coverage(file, weights, target.min_coverage)
    bundle = _bundle(file, checkpoint, weights, target) if target.bundle else None
    facts = PretrainedBackbone(
        method="none",
        depth=weights.depth,
        width=weights.width,
        preprocessing=adapt_preprocessing(target.channels),
        fingerprints={},
        stem=weights.stem,
        image_channels=target.channels,
        weights=project,
    )
    if target.out:
        with whole_folder(target.out) as folder:
            facts.save(weights.backbone(target.channels), folder)
        terminal.out.print(
            f"{target.out}: ResNet-{facts.depth}, width {facts.width:g}, stem {facts.stem}", markup=False
        )
    if bundle and target.bundle:
        with whole_folder(target.bundle) as folder:
            bundle.save(folder)
        own = bundle.network.architecture
        terminal.out.print(
            f"{target.bundle}: PSPNet with {own.classes} classes, output stride {own.output_stride}, dilation "
            f"{own.dilation}, align_corners {str(own.align_corners).lower()}",
            markup=False,
        )
    if versioned:
        dvc("add", "--quiet", str(target.out))
        params = f"{{depth: {facts.depth}, width: {facts.width:g}, stem: {facts.stem}, weights: imported}}"
        terminal.out.print(
            f"Next: git add {target.out}.dvc && git commit, and in params.yaml backbone: {params}", markup=False
        )


def _check(target: Target, versioned: bool) -> None:
    if target.output_stride not in get_args(OutputStride):
        raise UserError(Problem("--output-stride", f"is {target.output_stride}", "8, 16 or 32"))
    if target.bundle is None and target.classes is not None:
        raise UserError(Problem("--classes", "gives the classes of a bundle", "--bundle as well"))
    if target.channels != RGB and target.bundle is not None:
        raise UserError(
            Problem("--channels", f"is {target.channels}, but a bundle predicts RGB images", "3 with --bundle")
        )
    if target.channels != RGB and versioned:
        found = f"is {target.channels}, but the pipeline's images are RGB"
        raise UserError(Problem("--channels", found, "3", "For use elsewhere, give another folder with --out."))
    if target.out and target.bundle and _overlap(target.out.resolve(), target.bundle.resolve()):
        raise UserError(Problem("--bundle", f"is {target.bundle}, and --out is {target.out}", "separate folders"))
    for option, folder, facts in (("--out", target.out, BACKBONE_FACTS), ("--bundle", target.bundle, BUNDLE_FACTS)):
        if folder and folder.exists() and not (folder / facts).is_file() and not _is_empty(folder):
            found = f"exists without {facts} and would be replaced"
            raise UserError(Problem(str(folder), found, "an empty folder or none", f"Choose another with {option}."))


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _print_coverage(file: Path, weights: ForeignWeights) -> None:
    coverage = weights.coverage
    parts = ", ".join(f"{part.name} {part.found} of {part.wanted}" for part in coverage.parts)
    terminal.out.print(f"{file}: {coverage.share:.1%} of the tensors ({parts})", markup=False)


def _check_coverage(file: Path, weights: ForeignWeights, min_coverage: float) -> None:
    coverage = weights.coverage
    faults = list(coverage.faults())
    if coverage.share < min_coverage:
        found = f"matches {coverage.share:.1%} of the tensors ({'; '.join(faults)})"
        fix = "If the rest may be random or left out, lower --min-coverage."
        raise UserError(Problem(str(file), found, f"at least {min_coverage:.1%}", fix))
    for fault in faults:
        terminal.err.print(f"{fault}. It is initialized at random or left out.", style="yellow", markup=False)


def _bundle(file: Path, checkpoint: Checkpoint, weights: ForeignWeights, target: Target) -> Bundle:
    if not weights.is_whole:
        raise UserError(Problem(str(file), "contains a backbone", "a whole network with --bundle", "Omit --bundle."))
    names, colors = _classes(file, checkpoint, weights, target.classes)
    if len(names) != weights.classes:
        found = f"The file has {weights.classes} classes and {target.classes} has {len(names)}: the classifier is new "
        terminal.err.print(f"{found}and predicts nothing until it is trained.", style="yellow", markup=False)
    stride = cast("Literal[8, 16, 32]", target.output_stride)
    return Bundle(
        network=weights.network(len(names), target.channels, stride, target.align_corners).eval(),
        preprocessing=adapt_preprocessing(target.channels),
        classes=names,
        colors=colors,
        pretraining=weights.project,
        fingerprints={},
        backbone_digest="",
    )


def _classes(
    file: Path, checkpoint: Checkpoint, weights: ForeignWeights, path: Path | None
) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    if path is not None:
        own = read_classes(path)
        return own.names, own.colors
    if len(checkpoint.classes) != weights.classes:
        found = f"has {weights.classes} classes but names {len(checkpoint.classes) or 'none'} of them"
        fix = "Name them in the order of the network's outputs: --classes classes.yaml."
        raise UserError(Problem(str(file), found, "a name for each", fix))
    return checkpoint.classes, _filled(checkpoint.colors, weights.classes)


def _filled(colors: Iterable[Color], classes: int) -> tuple[Color, ...]:
    own = tuple(colors)[:classes]
    return own + tuple(default_color(number) for number in range(len(own), classes))
