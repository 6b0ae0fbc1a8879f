"""The `pspnet` command. Each function imports what it needs when it is called, so that `pspnet --help` is instant."""

import json
import os
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from pspnet import terminal
from pspnet.credentials import hide_in_output
from pspnet.offline import STATE, dvc_here, go_offline, prefect_here
from pspnet.process import collect_less_garbage, rank, ranks

if TYPE_CHECKING:
    from pspnet.commands.workshop import Workshop
    from pspnet.config.params import Params

EXITS = Path(".pspnet/exit")  # of this checkout, also where its state is shared with others
PARAMS, PIPELINE_FILE = Path("params.yaml"), Path("dvc.yaml")

CHAMPION = "champion"
PIPELINE = "The pipeline"
STAGES = "Stages (dvc.yaml calls them; `make retrain` runs what changed)"
REGISTRY = "Versions of the model"
AROUND = "Around the pipeline"

app = typer.Typer(
    help="Keeps a PSPNet segmentation model trained, measured and promoted.",
    epilog="Example, from nothing to a report:  make demo  "
    "Own data: images/ and masks/ into data/raw, `pspnet use recipes/start.yaml`, name the classes, `make retrain`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Which = Annotated[str, typer.Argument(help="A version: its number, champion or challenger.", metavar="VERSION")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Why = Annotated[str, typer.Option(help="Kept in the audit.")]
PreparedNow = Annotated[Path, typer.Option(help="Today's prepared dataset, on whose test split models are compared.")]
ReportNow = Annotated[Path, typer.Option(help="The evaluation of the bundle.")]
RAW = Path("data/raw")
PREPARED, REPORT, RECORDS = Path("data/prepared"), Path("reports/evaluation"), Path("reports/runs")
BUNDLE = Path("models/segmenter")
WEIGHTS = Path("data/weights")
# Written once more here, since where they are known torch is loaded; tests hold them together.
Benchmark = Literal["cityscapes", "voc", "ade20k"]
ExportFormat = Literal["onnx", "pt2"]
Project = Literal["hszhao", "mmseg", "torchvision", "timm", "moco", "densecl", "swav", "dino"]

Prepared = Annotated[Path, typer.Option(help="The prepared dataset, made by `prepare`.")]
History = Annotated[Path, typer.Option(help="CSV to write: a line per epoch.")]
RunRecord = Annotated[
    Path | None, typer.Option(help="JSON to write: which MLflow run this was, how long it took, and where.")
]


def main() -> None:
    collect_less_garbage()
    go_offline()
    hide_in_output()
    if PIPELINE_FILE.exists():
        dvc_here(_state())
    terminal.run(lambda: app(prog_name="pspnet"))


def _state() -> Path:
    """Where this machine keeps checkpoints and other memories, which are never outputs."""
    return Path(os.environ.get("PSPNET_STATE", STATE))


def _checkpoints() -> Path:
    return _state() / "checkpoints"


def _stage(name: str, sections: tuple[str, ...], run_record: Path | None, **paths: Any) -> Any:
    """Check the whole of params.yaml, hand the stage its own sections, and run it as a process DVC can rely on."""
    from pspnet.training.launch import exit_file

    with terminal.stage(name, exit_file(EXITS, name, rank())) as tick:
        params = _params()
        from pspnet.tracking.attempt import stage_run
        from pspnet.tracking.run import StageRun

        told = (
            stage_run(_state(), name, params, sections, run_record, _note) if rank() == 0 else nullcontext(StageRun())
        )
        with told as run:
            stage = import_module(f"pspnet.stages.{name}")  # takes seconds, in which a parent may die
            own = {section: getattr(params, section) for section in sections}
            return stage.run(**own, **paths, run=run, tick=tick)


def _training(name: str, sections: tuple[str, ...], run_record: Path | None, **paths: Any) -> None:
    """A stage that PSPNET_DEVICES may spread over several processes, each of which calls this again."""
    from pspnet.training.launch import devices, exit_file, launch

    if ranks() == 1:
        exit_file(EXITS, name, 0).unlink(missing_ok=True)
        if (count := devices()) > 1:
            raise typer.Exit(launch(name, count, EXITS))
    _stage(name, sections, run_record, **paths)


def _note(text: str) -> None:
    terminal.err.print(text, style="yellow", markup=False)


def _params() -> "Params":
    from pspnet.config.params import load_params

    return load_params(PARAMS)


@app.command(rich_help_panel=STAGES)
def prepare(
    raw: Annotated[Path, typer.Option(help="Folder of the raw data.")],
    out: Annotated[Path, typer.Option(help="Folder to write: shards, dataset.json, data_report.html, problems.csv.")],
    run_record: RunRecord = None,
    part: Annotated[str, typer.Option(help="Only check a part of the data, such as 2/4, for --merge.")] = "",
    merge: Annotated[
        list[Path] | None, typer.Option(help="Folder of a part to join instead of checking; given for each.")
    ] = None,
) -> None:
    """Raw images and masks -> a checked, split, sharded dataset.

    Example: pspnet prepare --raw data/raw --out data/prepared --run-record reports/runs/prepare.json
    """
    if part:
        with terminal.stage("prepare", EXITS / "prepare-part.json") as tick:
            own = _params()
            from pspnet.stages.prepare import run_part

            run_part(own.dataset, own.prepare, raw=raw, out=out, part=part, tick=tick)
        return
    told = _stage("prepare", ("dataset", "prepare"), run_record,
                  raw=raw, out=out, checkpoints=_checkpoints(), merge=merge or [])  # fmt: skip
    terminal.out.print(f"{told}  {out / 'data_report.html'}", markup=False)


@app.command(rich_help_panel=STAGES)
def pretrain(
    prepared: Prepared,
    weights: Annotated[Path, typer.Option(help="Folder of imported weights, for `backbone.weights: imported`.")],
    out: Annotated[Path, typer.Option(help="Folder to write: the backbone.")],
    history: History,
    run_record: RunRecord = None,
) -> None:
    """Train the backbone on images without masks (`pretrain.method` in params.yaml), from what `backbone.weights` says.

    Example: pspnet pretrain --prepared data/prepared --weights data/weights --out models/backbone --history
    reports/pretrain.csv --run-record reports/runs/pretrain.json
    """
    _training("pretrain", ("backbone", "pretrain", "runtime"), run_record,
              prepared=prepared, weights=weights, out=out, history=history, checkpoints=_checkpoints())  # fmt: skip


@app.command(rich_help_panel=STAGES)
def finetune(
    prepared: Prepared,
    backbone: Annotated[Path, typer.Option(help="The backbone, made by `pretrain`.")],
    out: Annotated[Path, typer.Option(help="Folder to write: the bundle, which is the model.")],
    history: History,
    run_record: RunRecord = None,
) -> None:
    """Train the whole network on images with masks; the best epoch on val becomes the bundle.

    Example: pspnet finetune --prepared data/prepared --backbone models/backbone --out models/segmenter --history
    reports/finetune.csv --run-record reports/runs/finetune.json
    """
    _training("finetune", ("backbone", "finetune", "runtime"), run_record,
              prepared=prepared, pretrained=backbone, out=out, history=history, checkpoints=_checkpoints())  # fmt: skip


@app.command(rich_help_panel=STAGES)
def evaluate(
    prepared: Prepared,
    bundle: Annotated[Path, typer.Option(help="The bundle, made by `finetune`.")],
    history: Annotated[list[Path], typer.Option(help="CSV of a training, to draw its curves; may be given again.")],
    out: Annotated[Path, typer.Option(help="Folder to write: report.html, report.json and tables.")],
    metrics: Annotated[Path, typer.Option(help="JSON to write: the headline numbers.")],
    run_record: RunRecord = None,
) -> None:
    """Measure a bundle on the test split and write the report.

    Example: pspnet evaluate --prepared data/prepared --bundle models/segmenter --history reports/pretrain.csv --history
    reports/finetune.csv --out reports/evaluation --metrics reports/metrics.json --run-record reports/runs/evaluate.json
    """
    summary = _stage("evaluate", ("evaluate", "predict", "runtime"), run_record,
                     prepared=prepared, bundle=bundle, histories=history, out=out, metrics=metrics)  # fmt: skip
    terminal.out.print(f"[bold]test mIoU {summary['mean_iou']:.3f}[/]  {out / 'report.html'}")


@app.command(rich_help_panel=PIPELINE)
def retrain(
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of this run alone; may be given again.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Run what changed, register it, promote it if it passes, share the results. With --set: in a worktree of its own.

    Example: pspnet retrain --set finetune.learning_rate=0.01
    """
    prefect_here(_state())
    from flows.local import retrain as run

    run(_state(), changes or [])


@app.command(rich_help_panel=PIPELINE)
def schedule(
    cron: Annotated[str, typer.Option(help="When to retrain: minute, hour, day of month, month, day of week; UTC.")],
    watch: Annotated[int, typer.Option(min=0, help="Seconds between two looks at the data; 0: never.")] = 300,
    port: Annotated[int, typer.Option(help="Of Prefect's pages, on this machine.")] = 4200,
) -> None:
    """Retrain by the clock, and when there are new data, on this machine, as long as this command runs.

    Example: pspnet schedule --cron "0 3 * * 0"
    """
    prefect_here(_state())
    from flows import schedule as flow

    flow.schedule(_state(), cron, watch, port)


@app.command(rich_help_panel=PIPELINE)
def deploy() -> None:
    """Have a Prefect server run prefect.yaml with this commit: pools, schedules, and what happens when a machine dies.

    PREFECT_API_URL says which server: http://prefect.example:4200/api.

    Example: pspnet deploy
    """
    from flows import team

    team.deploy()


@app.command(rich_help_panel=PIPELINE)
def worker(
    pool: Annotated[str, typer.Argument(help="A pool of prefect.yaml: cpu or gpu.")],
    limit: Annotated[int, typer.Option(min=1, help="Runs at once; a retraining that waits for a GPU is one, too.")] = 4,
    name: Annotated[str | None, typer.Option(help="How Prefect's pages call it.")] = None,
) -> None:
    """Run what a Prefect server has for a pool, on this machine, from this clone.

    PREFECT_API_URL says which server: http://prefect.example:4200/api.

    Example: pspnet worker gpu --limit 1
    """
    prefect_here(_state())
    from flows import team

    team.worker(pool, limit, name)


@app.command(rich_help_panel=AROUND)
def predict(
    images: Annotated[Path, typer.Argument(help="Folder of images, searched with its sub-folders.")],
    out: Annotated[Path, typer.Option(help="Folder to write: masks, overlays, predictions.parquet.")],
    model: Annotated[str, typer.Option(help="A registered version: champion, challenger or its number.")] = CHAMPION,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(help="A bundle to predict with instead of a registered one; the mean of several that are given."),
    ] = None,
    params: Annotated[Path, typer.Option(help="The params to predict with; a version has its own.")] = PARAMS,
    layout: Annotated[Benchmark | None, typer.Option(help="Write the masks for a benchmark's server too.")] = None,
) -> None:
    """Masks for a folder of images, by the champion unless you say otherwise.

    Run again, it goes on where it stopped, and follows the folder: images that are new, changed or removed.

    Example: pspnet predict photos --out predictions
    """
    if not bundle:
        from pspnet.commands.predict import predict_with_version

        shop = _workshop()
        predict_with_version(shop, shop.versions.get(model), images, out, layout)
        return
    with terminal.stage("predict", EXITS / "predict.json") as tick:
        from pspnet.config.params import load_params
        from pspnet.stages.predict import run

        own = load_params(params)
        refused = run(
            own.prepare, own.predict, own.runtime, images=images, bundles=bundle, out=out, layout=layout, tick=tick
        )
    for problem in refused:
        terminal.err.print(f"skipped {problem}", style="yellow", markup=False)
    skipped = f", {len(refused)} images skipped" if refused else ""
    terminal.out.print(f"{out / 'predictions.parquet'}{skipped}", markup=False)


@app.command(rich_help_panel=AROUND)
def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle, made by `finetune`.")] = BUNDLE,
    form: Annotated[ExportFormat, typer.Option("--format", help="Of the file.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="File to write; else the bundle's name with .onnx or .pt2.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="How far logits may be from the bundle's, relative to the largest.")
    ] = 1e-4,
) -> None:
    """A bundle as a file for other runtimes, once it computes the same at five sizes.

    Example: pspnet export models/segmenter --format onnx --out segmenter.onnx
    """
    from pspnet.commands import export as command

    command.export(bundle, form, out or Path(f"{bundle.resolve().name}.{form}"), tolerance)


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


data_app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(data_app, name="data", help="Raw data and the prepared set.", rich_help_panel=AROUND)


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="A folder of images and masks, in whatever layout.", metavar="DIR")],
    sheet: Annotated[Path, typer.Option(help="PNG to write: some images with their masks.")] = Path("inspect.png"),
    masks: Annotated[int, typer.Option(min=1, help="How many masks to look into, at most.")] = 200,
    as_json: Json = False,
) -> None:
    """Say which layout a folder seems to be, what its masks hold, and which params fit it.

    Example: pspnet data inspect data/raw --sheet inspect.png
    """
    from pspnet.commands import data as command

    command.inspect(folder, sheet, masks, as_json)


@data_app.command("add")
def data_add(
    batch: Annotated[
        Path | None, typer.Argument(help="A folder that lies as the raw data do, or a .zip or .tar.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Its folder among the images and the masks; else it is called as it is.")
    ] = None,
    move: Annotated[bool, typer.Option("--move", help="Do not keep the batch where it was.")] = False,
    repository: Annotated[
        tuple[str, str] | None,
        typer.Option("--import", help="A folder of another DVC or git repository instead.", metavar="REPO PATH"),
    ] = None,
    rev: Annotated[str | None, typer.Option(help="Of that repository: a branch to follow, a tag or a commit.")] = None,
    url: Annotated[
        str | None, typer.Option("--import-url", help="A folder instead, such as s3://bucket/set.", metavar="URL")
    ] = None,
    raw: Annotated[Path, typer.Option(help="Folder of the raw data.")] = RAW,
) -> None:
    """Add a batch to the raw data, after a look at it, or import them; DVC keeps what they are then.

    Example: pspnet data add deliveries/2024-05 --move
    """
    if sum(source is not None for source in (batch, repository, url)) != 1:
        raise typer.BadParameter("one of a folder, --import and --import-url", param_hint="BATCH")
    if (rev and not repository) or ((name or move) and not batch):
        raise typer.BadParameter("--rev belongs to --import, --name and --move to a folder", param_hint="OPTIONS")
    if batch:
        from pspnet.commands.data_add import add

        add(batch, raw, _params(), name, move, _state())
        return
    from pspnet.commands import data_import as command

    if repository:
        command.import_from_repository(*repository, rev, raw, _state())
    elif url:
        command.import_from_url(url, raw, _state())


@data_app.command("export")
def data_export(
    prepared: Annotated[Path, typer.Argument(help="The prepared dataset, made by `prepare`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: images, masks, classes.yaml, splits.csv.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split; may be given again.", metavar="SPLIT")
    ] = None,
) -> None:
    """A prepared set as files again. With layout `folder` they prepare to the same set.

    Example: pspnet data export data/prepared exported --split train --split val
    """
    from pspnet.commands import data_export as command

    with terminal.progress("export") as tick:
        command.export(prepared, out, split or [], tick)


@data_app.command("diff")
def data_diff(
    rev: Annotated[
        str, typer.Argument(help="A commit, branch or tag of git whose dvc.lock names a prepared set.")
    ] = "HEAD",
    prepared: Annotated[Path, typer.Option(help="The prepared dataset that is here now.")] = PREPARED,
    limit: Annotated[int, typer.Option(min=0, help="Names shown of each kind; --json has them all.")] = 10,
    as_json: Json = False,
) -> None:
    """What changed since a commit: images, masks, splits, classes, label pixels.

    Example: pspnet data diff HEAD~1 --limit 3
    """
    from pspnet.commands import data_diff as command

    command.diff(rev, prepared, limit, as_json)


weights_app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(weights_app, name="weights", help="Weights that other projects have trained.", rich_help_panel=AROUND)


@weights_app.command("import")
def weights_import(
    file: Annotated[Path, typer.Argument(help="What that project has saved: .pth, .pt, .safetensors.")],
    project: Annotated[Project, typer.Option("--from", help=f"{', '.join(get_args(Project))}.", metavar="PROJECT")],
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder to write: the backbone. Without --bundle it is {WEIGHTS / 'imported'} by default."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder to write: the whole network, for `pspnet predict --bundle`.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="classes.yaml of the bundle; else the classes that the file names.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Of the images: 1 is gray, 3 is RGB.")] = 3,
    min_coverage: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the tensors that must be there; the rest would be random.")
    ] = 1.0,
    output_stride: Annotated[int, typer.Option(help="Of the bundle: 8, 16 or 32 pixels per feature.")] = 8,
    align_corners: Annotated[
        bool | None,
        typer.Option("--align-corners/--no-align-corners", help="Of the bundle; else as its project computes."),
    ] = None,
) -> None:
    """Take a backbone, or a whole PSPNet, from another project's file: by its names and shapes, and not in part.

    Example: pspnet weights import moco_v2_800ep_pretrain.pth.tar --from moco
    """
    from pspnet.commands import weights as command

    imported = WEIGHTS / "imported"
    if out is None and bundle is None:
        out = imported
    target = command.Target(out, bundle, classes, channels, min_coverage, output_stride, align_corners)
    command.import_file(file, project, target, versioned=out == imported)


@app.command(rich_help_panel=AROUND)
def use(recipe: Annotated[Path, typer.Argument(help="A complete params file, such as recipes/start.yaml.")]) -> None:
    """Make a recipe the params.yaml of this checkout, and show what that changes.

    Example: pspnet use recipes/start.yaml
    """
    from pspnet.commands import use as command

    command.use(recipe, PARAMS, backup=_state() / "params.before.yaml")


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
def runs(
    limit: Annotated[int, typer.Option(min=1, help="How many, from the newest on.")] = 20,
    classes: Annotated[bool, typer.Option("--classes", help="The test IoU of every class too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything that is known of them, for programs.")] = False,
    send: Annotated[bool, typer.Option("--send", help="Only send what has not reached MLflow from here.")] = False,
) -> None:
    """Runs of the pipeline: how good each was, what became of it, and which parameters made the difference.

    Example: pspnet runs --limit 5 --classes
    """
    from pspnet.commands import runs as command

    if send:
        command.send(_state())
        return
    command.runs(PARAMS, _state(), limit, classes, as_json)


@app.command(rich_help_panel=AROUND)
def doctor(
    raw: Annotated[Path, typer.Option(help="Folder of the raw data.")] = RAW,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what must hold before a run; silent when all is well.")
    ] = False,
) -> None:
    """Look at everything the pipeline needs and say what to do about what is missing.

    Example: pspnet doctor
    """
    from pspnet.commands import doctor as command

    command.examine(PARAMS, raw, quick)


def _workshop() -> "Workshop":
    from pspnet.commands.workshop import open_workshop

    return open_workshop(_state(), _params())


@app.command(rich_help_panel=REGISTRY)
def register(
    bundle: Annotated[Path, typer.Argument(help="The bundle, made by `finetune`.")] = BUNDLE,
    report: ReportNow = REPORT,
    prepared: PreparedNow = PREPARED,
    records: Annotated[Path, typer.Option(help="Folder of the stages' run records.")] = RECORDS,
    promote: Annotated[bool, typer.Option("--promote", help="Then ask the gate, and promote it if it passes.")] = False,
    as_json: Json = False,
) -> None:
    """Make a bundle a version of the model `registry.model`; the same bundle never becomes two.

    Example: pspnet register --promote
    """
    from pspnet.model.digest import digest
    from pspnet.registry.versions import has_folder
    from pspnet.served import warm_process

    will_ask = promote and bundle.is_dir() and not has_folder(_state(), digest(bundle))
    with warm_process() if will_ask else nullcontext() as call:
        from pspnet.commands import promote as promotion
        from pspnet.commands import register as command
        from pspnet.commands.gate import Data
        from pspnet.commands.workshop import open_workshop

        params = _params()
        results = command.Results(bundle, report, prepared, records)
        examples = command.examples_of(results, params, call)
        shop = open_workshop(_state(), params)
        version, new = command.register(shop, results, examples)
        done = promotion.promote(shop, version, Data(prepared, report)) if promote else None
    terminal.out.stderr = as_json
    command.tell(shop, version, new)
    if done:
        from pspnet.commands import models

        promotion.tell(shop, done)
        models.overview(shop)
    if as_json:
        print(command.as_json(shop, results, version, new, done))  # noqa: T201


@app.command(hidden=True)
def standing() -> None:
    """For `pspnet retrain`: what `register --promote` would say, as JSON; null if it would change something.

    Example: pspnet standing
    """
    from pspnet.commands import doctor
    from pspnet.commands import standing as command
    from pspnet.commands.register import Results

    headline = None
    if doctor.can_run(PARAMS, RAW):
        headline = command.headline(_workshop(), Results(BUNDLE, REPORT, PREPARED, RECORDS))
    print(json.dumps({"headline": headline}))  # noqa: T201


@app.command(rich_help_panel=REGISTRY)
def promote(
    version: Annotated[str | None, typer.Argument(help="Its number; else the challenger.")] = None,
    approve: Annotated[bool, typer.Option("--approve", help="A person agrees (promotion.approval: manual).")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote what is held; --why must say why.")] = False,
    why: Why = "",
    report: ReportNow = REPORT,
    prepared: PreparedNow = PREPARED,
    as_json: Json = False,
) -> None:
    """Ask the gate about a version, and make it champion if it passes. Exit status 1: it is not champion.

    Example: pspnet promote 3 --approve
    """
    from pspnet.commands import promote as command
    from pspnet.commands.gate import Data

    if force and not why:
        raise typer.BadParameter("say why: it is kept in the audit", param_hint="--why")
    shop = _workshop()
    done = command.promote(
        shop, command.candidate(shop, version), Data(prepared, report), why=why, forced=force, approved=approve
    )
    terminal.out.stderr = as_json
    command.tell(shop, done)
    if as_json:
        print(command.as_json(shop, done))  # noqa: T201
    if done.move is None and done.outcome != "is champion":
        raise typer.Exit(1)


@app.command(rich_help_panel=REGISTRY)
def rollback(
    to: Annotated[
        str | None, typer.Option(help="The version to go back to; else the champion before this one.")
    ] = None,
    why: Why = "",
) -> None:
    """Make an earlier version champion again. What was rolled back is not promoted again by itself.

    Example: pspnet rollback --to 2 --why "misses scratches at night"
    """
    from pspnet.commands import promote as command

    shop = _workshop()
    move = command.rollback(shop, to, why)
    terminal.out.print(f"{shop.versions.model}: version {move.to_version} is champion, {move.from_version} no longer")


models_app = typer.Typer(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(models_app, name="models", rich_help_panel=REGISTRY)


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """The registered versions: aliases, test mIoU, decisions. `pspnet models history`: who was champion when, and why.

    Example: pspnet models
    """
    if context.invoked_subcommand is None:
        from pspnet.commands import models as command

        command.models(_workshop(), as_json)


@models_app.command("history")
def models_history(as_json: Json = False) -> None:
    """Every promotion and rollback: who, when, why, from and to.

    Example: pspnet models history
    """
    from pspnet.commands import models as command

    command.history(_workshop(), as_json)


@models_app.command("seal")
def models_seal(version: Which) -> None:
    """Seal the files of a version that was registered without a seal, or before PSPNET_AUDIT_KEY was set.

    Example: pspnet models seal 3
    """
    from pspnet.commands import models as command

    command.seal(_workshop(), version)


@app.command(rich_help_panel=REGISTRY)
def lineage(version: Which = CHAMPION, as_json: Json = False) -> None:
    """What a version was made of: data, runs, commit, params, packages, report, decisions.

    Example: pspnet lineage champion
    """
    from pspnet.commands import lineage as command

    command.lineage(_workshop(), version, as_json)


@app.command(rich_help_panel=REGISTRY)
def reproduce(
    version: Which,
    run_again: Annotated[
        bool, typer.Option("--run-again", help="Really run every stage; else results may come from DVC's cache.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the worktree, whatever comes out.")] = False,
) -> None:
    """Make a version again, from its commit and data in a worktree, and compare digests. Exit status 1: they differ.

    Example: pspnet reproduce 3
    """
    from pspnet.commands import reproduce as command

    command.reproduce(_workshop(), version, run_again, keep)


@app.command(rich_help_panel=REGISTRY)
def serve(
    model: Annotated[str, typer.Option(help="A registered version: champion, challenger or its number.")] = CHAMPION,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: int = 5001,
) -> None:
    """Answer images over HTTP with masks, by the version's own code: POST /invocations, GET /ping.

    Example: pspnet serve --port 5001
    """
    from pspnet.commands import serve as command

    shop = _workshop()
    version = shop.versions.get(model)
    command.serve(shop.folder(version), f"{shop.versions.model} version {version.number}", host, port)
