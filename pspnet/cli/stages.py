"""The "Stages" panel: each command checks params.yaml, then runs its stage with the sections and paths the stage needs.

DVC calls these commands.
"""

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from pspnet.cli.app import STAGES, app, params_here, state
from pspnet.machine import events, terminal
from pspnet.machine.process import rank, ranks

Prepared = Annotated[Path, typer.Option(help="The prepared dataset, as written by `prepare`.")]
History = Annotated[Path, typer.Option(help="The CSV file to write, with a line per epoch or validation.")]
RunRecord = Annotated[
    Path | None, typer.Option(help="The JSON file to write, with the MLflow run, the duration and the machine.")
]


def checkpoints() -> Path:
    return state() / "checkpoints"


def _stage(name: str, sections: tuple[str, ...], run_record: Path | None, **paths: Any) -> Any:
    """Check all of params.yaml, then run the stage with the given sections of it."""
    with terminal.stage(name) as tick:
        params = params_here()
        from pspnet.tracking.attempt import stage_run
        from pspnet.tracking.run import StageRun

        tracked = (
            stage_run(state(), name, params, sections, run_record, terminal.note)
            if rank() == 0
            else nullcontext(StageRun())
        )
        with tracked as run:
            stage = import_module(f"pspnet.stages.{name}")  # takes seconds, and the parent may die in the meantime
            own = {section: getattr(params, section) for section in sections}
            return stage.run(**own, **paths, run=run, tick=tick)


def _training(name: str, sections: tuple[str, ...], run_record: Path | None, **paths: Any) -> None:
    """Run a training stage. PSPNET_DEVICES can spread it over several processes, each of which calls this again."""
    from pspnet.training.launch import devices, launch

    if ranks() == 1 and (count := devices()) > 1:
        with events.some_log(state()) as log:
            raise typer.Exit(launch(name, count, log))
    _stage(name, sections, run_record, **paths)


@app.command(rich_help_panel=STAGES)
def prepare(
    raw: Annotated[Path, typer.Option(help="The folder that contains the raw data.")],
    out: Annotated[
        Path, typer.Option(help="The folder to write shards, dataset.json, data_report.html and problems.csv to.")
    ],
    run_record: RunRecord = None,
    part: Annotated[str, typer.Option(help="Check only part of the data, such as 2/4, for a later --merge.")] = "",
    merge: Annotated[
        list[Path] | None, typer.Option(help="Merge the part in this folder instead of checking. Repeat for each part.")
    ] = None,
) -> None:
    """Turn raw images and masks into a checked, split and sharded dataset.

    Example: pspnet prepare --raw data/raw --out data/prepared --run-record reports/runs/prepare.json
    """
    if part:
        with terminal.stage("prepare") as tick:
            own = params_here()
            from pspnet.stages.prepare import run_part

            run_part(own.dataset, own.prepare, raw=raw, out=out, checkpoints=checkpoints(), part=part, tick=tick)
        return
    summary = _stage("prepare", ("dataset", "prepare"), run_record,
                     raw=raw, out=out, checkpoints=checkpoints(), merge=merge or [])  # fmt: skip
    terminal.out.print(f"{summary}  {out / 'data_report.html'}", markup=False)


@app.command(rich_help_panel=STAGES)
def pretrain(
    prepared: Prepared,
    weights: Annotated[Path, typer.Option(help="The folder with imported weights, for `backbone.weights: imported`.")],
    out: Annotated[Path, typer.Option(help="The folder to write the backbone to.")],
    history: History,
    page: Annotated[Path, typer.Option(help="The page to write, which shows what the backbone has learned.")],
    run_record: RunRecord = None,
) -> None:
    """Pretrain the backbone without masks, with `pretrain.method` and `backbone.weights` from params.yaml.

    Example: pspnet pretrain --prepared data/prepared --weights data/weights --out models/backbone --history
    reports/pretrain.csv --page reports/pretrain.html --run-record reports/runs/pretrain.json
    """
    _training("pretrain", ("backbone", "pretrain", "runtime"), run_record, prepared=prepared, weights=weights, out=out,
              history=history, page=page, checkpoints=checkpoints())  # fmt: skip


@app.command(rich_help_panel=STAGES)
def finetune(
    prepared: Prepared,
    backbone: Annotated[Path, typer.Option(help="The backbone, as written by `pretrain`.")],
    out: Annotated[Path, typer.Option(help="The folder to write the bundle to.")],
    history: History,
    run_record: RunRecord = None,
) -> None:
    """Train the whole network. The epoch with the best validation score becomes the bundle.

    Example: pspnet finetune --prepared data/prepared --backbone models/backbone --out models/segmenter --history
    reports/finetune.csv --run-record reports/runs/finetune.json
    """
    _training("finetune", ("backbone", "finetune", "runtime"), run_record,
              prepared=prepared, pretrained=backbone, out=out, history=history, checkpoints=checkpoints())  # fmt: skip


@app.command(rich_help_panel=STAGES)
def evaluate(
    prepared: Prepared,
    bundle: Annotated[Path, typer.Option(help="The bundle, as written by `finetune`.")],
    history: Annotated[list[Path], typer.Option(help="The CSV file of a training run, to plot. Repeat for several.")],
    out: Annotated[Path, typer.Option(help="The folder to write report.html, report.json and the tables to.")],
    metrics: Annotated[Path, typer.Option(help="The JSON file to write the headline numbers to.")],
    run_record: RunRecord = None,
) -> None:
    """Evaluate a bundle on the test split and write the report.

    Example: pspnet evaluate --prepared data/prepared --bundle models/segmenter --history reports/pretrain.csv --history
    reports/finetune.csv --out reports/evaluation --metrics reports/metrics.json --run-record reports/runs/evaluate.json
    """
    summary = _stage("evaluate", ("evaluate", "predict", "runtime"), run_record,
                     prepared=prepared, bundle=bundle, histories=history, out=out, metrics=metrics)  # fmt: skip
    terminal.out.print(f"[bold]test mIoU {summary['mean_iou']:.3f}[/]  {out / 'report.html'}")
