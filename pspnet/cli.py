"""The `pspnet` command. Each function imports what it needs when it is called, so that `pspnet --help` is instant."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pspnet import terminal
from pspnet.offline import go_offline

if TYPE_CHECKING:
    from pspnet.config.params import Params

STATE = Path(
    os.environ.get("PSPNET_STATE", ".pspnet")
)  # checkpoints and other memories of this machine; never an output
CHECKPOINTS = STATE / "checkpoints"
PARAMS = Path("params.yaml")

STAGES = "Stages (dvc.yaml calls them; `make pipeline` runs what changed)"
AROUND = "Around the pipeline"

app = typer.Typer(
    help="Keeps a PSPNet segmentation model trained, measured and promoted.",
    epilog="Example, from nothing to a report:  make demo  "
    "Own data: images/ and masks/ into data/raw, `pspnet use recipes/start.yaml`, name the classes, `make pipeline`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Prepared = Annotated[Path, typer.Option(help="The prepared dataset, made by `prepare`.")]
History = Annotated[Path, typer.Option(help="CSV to write: a line per epoch.")]


def main() -> None:
    go_offline()
    terminal.run(app)


def _stage(name: str, sections: tuple[str, ...], **paths: Any) -> Any:
    """Check the whole of params.yaml, hand the stage its own sections, and run it as a process DVC can rely on."""
    with terminal.stage(name, STATE / "exit" / f"{name}.json") as tick:
        params = _params()
        run = import_module(f"pspnet.stages.{name}").run  # takes seconds, in which a parent may die
        return run(**{section: getattr(params, section) for section in sections}, **paths, tick=tick)


def _params() -> "Params":
    from pspnet.config.params import load_params

    return load_params(PARAMS)


@app.command(rich_help_panel=STAGES)
def prepare(
    raw: Annotated[Path, typer.Option(help="Folder of the raw data.")],
    out: Annotated[Path, typer.Option(help="Folder to write: shards, dataset.json, report.md.")],
) -> None:
    """Raw images and masks -> a checked, split, sharded dataset.

    Example: pspnet prepare --raw data/raw --out data/prepared
    """
    _stage("prepare", ("dataset", "prepare"), raw=raw, out=out)


@app.command(rich_help_panel=STAGES)
def pretrain(
    prepared: Prepared,
    out: Annotated[Path, typer.Option(help="Folder to write: the backbone.")],
    history: History,
) -> None:
    """Train the backbone on images without masks (`pretrain.method` in params.yaml).

    Example: pspnet pretrain --prepared data/prepared --out models/backbone --history reports/pretrain.csv
    """
    _stage("pretrain", ("backbone", "pretrain", "runtime"),
           prepared=prepared, out=out, history=history, checkpoints=CHECKPOINTS)  # fmt: skip


@app.command(rich_help_panel=STAGES)
def finetune(
    prepared: Prepared,
    backbone: Annotated[Path, typer.Option(help="The backbone, made by `pretrain`.")],
    out: Annotated[Path, typer.Option(help="Folder to write: the bundle, which is the model.")],
    history: History,
) -> None:
    """Train the whole network on images with masks; the best epoch on val becomes the bundle.

    Example: pspnet finetune --prepared data/prepared --backbone models/backbone --out models/segmenter --history
    reports/finetune.csv
    """
    _stage("finetune", ("backbone", "finetune", "runtime"),
           prepared=prepared, pretrained=backbone, out=out, history=history, checkpoints=CHECKPOINTS)  # fmt: skip


@app.command(rich_help_panel=STAGES)
def evaluate(
    prepared: Prepared,
    bundle: Annotated[Path, typer.Option(help="The bundle, made by `finetune`.")],
    history: Annotated[list[Path], typer.Option(help="CSV of a training, to draw its curves; may be given again.")],
    out: Annotated[Path, typer.Option(help="Folder to write: report.html, report.json and tables.")],
    metrics: Annotated[Path, typer.Option(help="JSON to write: the headline numbers.")],
) -> None:
    """Measure a bundle on the test split and write the report.

    Example: pspnet evaluate --prepared data/prepared --bundle models/segmenter --history reports/pretrain.csv --history
    reports/finetune.csv --out reports/evaluation --metrics reports/metrics.json
    """
    summary = _stage("evaluate", ("evaluate", "predict", "runtime"),
                     prepared=prepared, bundle=bundle, histories=history, out=out, metrics=metrics)  # fmt: skip
    terminal.out.print(f"[bold]test mIoU {summary['mean_iou']:.3f}[/]  {out / 'report.html'}")


@app.command(rich_help_panel=AROUND)
def predict(
    images: Annotated[Path, typer.Option(help="Folder of images, searched with its sub-folders.")],
    bundle: Annotated[Path, typer.Option(help="The bundle to predict with.")],
    out: Annotated[Path, typer.Option(help="Folder to write: masks, overlays, predictions.csv.")],
) -> None:
    """Masks for a folder of images. Run again, it goes on where it stopped.

    Example: pspnet predict --images photos --bundle models/segmenter --out predictions
    """
    refused = _stage("predict", ("prepare", "predict", "runtime"), images=images, bundle=bundle, out=out)
    for problem in refused:
        terminal.err.print(f"skipped {problem}", style="yellow", markup=False)
    terminal.out.print(f"{out / 'predictions.csv'}" + (f", {len(refused)} images skipped" if refused else ""))


@app.command(rich_help_panel=AROUND)
def synthesize(
    folder: Annotated[Path, typer.Argument(help="Where to draw them.")],
    images: Annotated[int, typer.Option(help="How many images.")] = 600,
    labelled: Annotated[int, typer.Option(help="How many of them get a mask.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed draws other streets.")] = 0,
) -> None:
    """Draw street scenes to try the pipeline on; a folder that holds other data is never touched.

    Example: pspnet synthesize data/raw --images 600 --labelled 200 --seed 0
    """
    from pspnet.dataset.synthetic import is_synthetic
    from pspnet.dataset.synthetic import synthesize as draw

    if is_synthetic(folder):
        terminal.err.print(f"{folder}: synthetic images are there already. Remove the folder to draw new ones.")
        return
    with terminal.progress("synthesize") as tick:
        draw(folder, images, labelled, seed, tick)


@app.command(rich_help_panel=AROUND)
def use(recipe: Annotated[Path, typer.Argument(help="A complete params file, such as recipes/start.yaml.")]) -> None:
    """Make a recipe the params.yaml of this checkout, and show what that changes.

    Example: pspnet use recipes/start.yaml
    """
    from pspnet.commands import use as command

    command.use(recipe, PARAMS, backup=STATE / "params.before.yaml")


@app.command(rich_help_panel=AROUND)
def accept(
    stage: Annotated[str, typer.Argument(help="A stage of dvc.yaml.")],
    why: Annotated[str, typer.Option(help="Why the change cannot matter; it is kept with the lineage.")],
) -> None:
    """Keep a stage's results although its code changed (a comment, a new name): it will not run again.

    Example: pspnet accept finetune --why "renamed a variable"
    """
    from pspnet.commands import accept as command

    command.accept(stage, why)


@app.command(rich_help_panel=AROUND)
def doctor(
    raw: Annotated[Path, typer.Option(help="Folder of the raw data.")] = Path("data/raw"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what must hold before a run; silent when all is well.")
    ] = False,
) -> None:
    """Look at everything the pipeline needs and say what to do about what is missing.

    Example: pspnet doctor
    """
    from pspnet.commands import doctor as command

    command.examine(PARAMS, raw, quick)
