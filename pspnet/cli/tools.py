"""The "Data and tools" panel: synthetic images, imported weights, recipes, runs, and the state of the checkout."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from pspnet.cli.app import (
    BACKBONE,
    HELP_NAMES,
    PARAMS,
    PREPARED,
    RAW,
    TOOLS,
    WEIGHTS,
    app,
    params_here,
    state,
)
from pspnet.machine import terminal

# Repeated here because the module that defines it loads torch. A test checks that the copies stay in sync.
Project = Literal["hszhao", "mmseg", "torchvision", "timm", "moco", "densecl", "swav", "dino"]

weights_app = typer.Typer(no_args_is_help=True, context_settings=HELP_NAMES)
app.add_typer(weights_app, name="weights", help="Import weights trained by other projects.", rich_help_panel=TOOLS)


@app.command(rich_help_panel=TOOLS)
def synthesize(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    images: Annotated[int, typer.Option(help="The number of images.")] = 600,
    labeled: Annotated[int, typer.Option(help="The number of images with a mask.")] = 200,
    seed: Annotated[int, typer.Option(help="The random seed.")] = 0,
) -> None:
    """Draw street scenes to try the pipeline on. Never touches a folder that contains other data.

    Example: pspnet synthesize data/raw --images 600 --labeled 200 --seed 0
    """
    from pspnet.demo.streets import is_synthetic
    from pspnet.demo.streets import synthesize as draw

    if is_synthetic(folder):
        terminal.err.print(f"{folder} already contains synthetic images. Remove the folder to draw new ones.")
        return
    with terminal.progress("synthesize") as tick:
        draw(folder, images, labeled, seed, tick)


@weights_app.command("import")
def weights_import(
    file: Annotated[Path, typer.Argument(help="The file saved by the other project: .pth, .pt or .safetensors.")],
    project: Annotated[
        Project,
        typer.Option(
            "--from", help=f"The project that saved the file: {', '.join(get_args(Project))}.", metavar="PROJECT"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help=f"The folder to write the backbone to. Defaults to {WEIGHTS / 'imported'} without --bundle."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The folder to write the whole network to, for `pspnet predict --bundle`."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="The bundle's classes.yaml. Defaults to the class names stored in the file.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="The number of image channels: 1 for gray, 3 for RGB.")] = 3,
    min_coverage: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="The share of tensors that the file must contain; the rest are initialized at random."
        ),
    ] = 1.0,
    output_stride: Annotated[int, typer.Option(help="The bundle's output stride: 8, 16 or 32 pixels per feature.")] = 8,
    align_corners: Annotated[
        bool | None,
        typer.Option(
            "--align-corners/--no-align-corners", help="How the bundle resizes. Defaults to how the project does."
        ),
    ] = None,
) -> None:
    """Import a backbone or a whole PSPNet from another project's file. All tensor names and shapes must match.

    Example: pspnet weights import moco_v2_800ep_pretrain.pth.tar --from moco
    """
    from pspnet.checkout import weights as command

    imported = WEIGHTS / "imported"
    if out is None and bundle is None:
        out = imported
    target = command.Target(out, bundle, classes, channels, min_coverage, output_stride, align_corners)
    command.import_file(file, project, target, versioned=out == imported)


@app.command(rich_help_panel=TOOLS)
def probe(
    prepared: Annotated[Path, typer.Option(help="The prepared dataset.")] = PREPARED,
    backbone: Annotated[Path, typer.Option(help="The backbone, made by `pretrain`.")] = BACKBONE,
) -> None:
    """Measure how well a linear classifier tells the classes apart from the backbone's features, and from those of
    random weights.

    Example: pspnet probe --backbone models/backbone
    """
    from pspnet.checkout import probing as command

    command.probe(params_here(), prepared, backbone)


@app.command(rich_help_panel=TOOLS)
def use(recipe: Annotated[Path, typer.Argument(help="A complete params file, such as recipes/start.yaml.")]) -> None:
    """Replace params.yaml with a recipe and show what changes.

    Example: pspnet use recipes/start.yaml
    """
    from pspnet.checkout import use as command

    command.use(recipe, PARAMS, backup=state() / "params.before.yaml")


@app.command(rich_help_panel=TOOLS)
def accept(
    stage: Annotated[str, typer.Argument(help="The name of a stage in dvc.yaml.")],
    why: Annotated[
        str, typer.Option(help="Why the change cannot affect the results. The reason is recorded in the lineage.")
    ],
) -> None:
    """Keep a stage's results after a code change that cannot affect them, such as a comment. The stage does not rerun.

    Example: pspnet accept finetune --why "renamed a variable"
    """
    from pspnet.checkout import acceptance as command

    command.accept(stage, why)


@app.command(rich_help_panel=TOOLS)
def runs(
    limit: Annotated[int, typer.Option(min=1, help="The number of runs to show, newest first.")] = 20,
    classes: Annotated[bool, typer.Option("--classes", help="Show the test IoU of every class.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all details.")] = False,
    send: Annotated[
        bool, typer.Option("--send", help="Only send records to MLflow that have not been sent yet.")
    ] = False,
) -> None:
    """Show pipeline runs with their scores, their versions and the parameters that differ between them.

    Example: pspnet runs --limit 5 --classes
    """
    from pspnet.tracking import comparison as command

    if send:
        command.send(state())
        return
    command.runs(PARAMS, state(), limit, classes, as_json)


@app.command(rich_help_panel=TOOLS)
def doctor(
    raw: Annotated[Path, typer.Option(help="The folder of raw data.")] = RAW,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only what a run needs. Prints nothing if there is no problem.")
    ] = False,
) -> None:
    """Check everything the pipeline needs, and explain how to fix whatever is missing.

    Example: pspnet doctor
    """
    from pspnet.checkout import doctor as command

    command.examine(PARAMS, raw, quick)
