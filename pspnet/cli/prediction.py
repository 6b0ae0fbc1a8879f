"""The "Predictions" panel: predict a folder of images, serve a model over HTTP, export a model to other runtimes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pspnet.cli.app import BUNDLE, CHAMPION, PARAMS, PREDICTIONS, app, registry_here
from pspnet.machine import events, terminal

# Repeated here because the modules that define them load torch. Tests check that the copies stay in sync.
Benchmark = Literal["cityscapes", "voc", "ade20k"]
ExportFormat = Literal["onnx", "pt2"]
LOGGED = 20  # maximum number of skipped images that a flow logs


@app.command(rich_help_panel=PREDICTIONS)
def predict(
    images: Annotated[Path, typer.Argument(help="The folder that contains the images; subfolders are included.")],
    out: Annotated[Path, typer.Option(help="The folder to write masks, overlays and predictions.parquet to.")],
    model: Annotated[str, typer.Option(help="The version to use: champion, challenger or a number.")] = CHAMPION,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(help="Use this bundle instead of a version. Repeat to average the predictions of several."),
    ] = None,
    params: Annotated[
        Path, typer.Option(help="The params file to use with --bundle; a registered version includes its own.")
    ] = PARAMS,
    layout: Annotated[
        Benchmark | None, typer.Option(help="Also write the masks in the format of a benchmark's server.")
    ] = None,
) -> None:
    """Predict masks for a folder of images, by default with the champion.

    Another run into the same folder resumes where the last one stopped, and handles new, changed and removed images.

    Example: pspnet predict photos --out predictions
    """
    if not bundle:
        from pspnet.registry.own_code import predict_with_version

        predict_with_version(registry_here(), model, images, out, layout)
        return
    with terminal.stage("predict") as tick:
        from pspnet.config.params import load_params
        from pspnet.prediction.image_folder import predict_folder

        own = load_params(params)
        refused = predict_folder(
            own.prepare, own.predict, own.runtime, images=images, bundles=bundle, out=out, layout=layout, tick=tick
        )
    for problem in refused:
        events.tell("skipped", problem=str(problem))
    # A flow logs only these lines, but receives every skipped image as an event.
    for problem in refused[:LOGGED] if events.log() else refused:
        terminal.err.print(f"skipped {problem}", style="yellow", markup=False)
    skipped = f", {len(refused)} images skipped" if refused else ""
    terminal.out.print(f"{out / 'predictions.parquet'}{skipped}", markup=False)


@app.command(rich_help_panel=PREDICTIONS)
def serve(
    model: Annotated[str, typer.Option(help="The version to serve: champion, challenger or a number.")] = CHAMPION,
    host: Annotated[
        str, typer.Option(help="The address to listen on. 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 5001,
) -> None:
    """Serve a model version over HTTP, with the code the version was saved with: POST /invocations, GET /ping.

    Example: pspnet serve --port 5001
    """
    from pspnet.serving import process as command

    registry = registry_here()
    version = registry.versions.get(model)
    command.serve(registry.folder(version), f"{registry.versions.model} version {version.number}", host, port)


@app.command(rich_help_panel=PREDICTIONS)
def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle, as written by `finetune`.")] = BUNDLE,
    form: Annotated[ExportFormat, typer.Option("--format", help="The format of the file.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Defaults to the bundle's name plus .onnx or .pt2.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="The largest allowed difference of logits, relative to the largest logit.")
    ] = 1e-4,
) -> None:
    """Export a bundle to other runtimes, after checking that the exported model gives the same outputs at five sizes.

    Example: pspnet export models/segmenter --format onnx --out segmenter.onnx
    """
    from pspnet.prediction.export import export as write

    out = out or Path(f"{bundle.resolve().name}.{form}")
    for parity in write(bundle, form, out, tolerance):
        images, height, width = parity.size
        terminal.err.print(
            f"{images} x {height} x {width} px: logits differ by at most {parity.difference:.1e}, "
            f"classes in {parity.other_class:.2%} of the pixels",
            markup=False,
        )
    terminal.out.print(str(out), markup=False)
