"""The "Pipeline" panel: flows that run on this machine or on a Prefect server's workers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pspnet.cli.app import PARAMS, PIPELINE, PREPARED, STUDY, WEIGHTS, app, params_here, state
from pspnet.machine import terminal
from pspnet.machine.offline import configure_prefect


@app.command(rich_help_panel=PIPELINE)
def retrain(
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a parameter for this run only. Repeat for several.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Run the stages that changed, register the model, promote it if it passes the gate, and push the results.

    With --set, everything happens in a git worktree, and this checkout stays unchanged.

    Example: pspnet retrain --set finetune.optimizer.learning_rate=0.01
    """
    configure_prefect(state())
    from flows.laptop.retrain_command import retrain as run

    run(state(), changes or [])


@app.command(rich_help_panel=PIPELINE)
def plan(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long one training run may take on this machine.")] = 30,
    explain: Annotated[bool, typer.Option("--explain", help="Print every choice with its reason.")] = False,
) -> None:
    """Write a params.yaml that fits the data in data/raw, this machine and the time you want to spend.

    Every number comes with a reason. The sections that describe the data, the registry and the gate are kept.

    Example: pspnet plan --minutes 30
    """
    from pspnet.planning import planning

    planning.plan(minutes, PARAMS, PREPARED, state() / "params.before.yaml", state(), explain)


@app.command(rich_help_panel=PIPELINE)
def study(
    hours: Annotated[float, typer.Option(min=0, help="How long to work; 0 only writes the page again.")] = 1,
    fraction: Annotated[
        list[str] | None,
        typer.Option(help="A share of the masks, such as 1/16. Repeat for several. Defaults to 1/16 and 1/4."),
    ] = None,
    masks: Annotated[
        list[int] | None, typer.Option(min=1, help="The same as a number of masks. Repeat for several.", metavar="N")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often each comparison is repeated.")] = 3,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="A way to train, such as masked or mean_teacher. Repeat for several.", metavar="ARM"),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Steps of fine-tuning. Repeat for several. Defaults to those of params.yaml."),
    ] = None,
    pretraining: Annotated[
        float, typer.Option(min=0, help="The compute of pretraining, as a multiple of fine-tuning from scratch.")
    ] = 1.0,
    out: Annotated[
        Path, typer.Option(help="The folder of results. Several processes and machines may share it.")
    ] = STUDY,
) -> None:
    """Measure whether images without masks pay on the prepared data: write study.html and study.csv.

    Trains on parts of the masks, with and without each method, and compares with plain training of the same compute.
    The same command continues a study that was stopped, and joins one that is running.

    Example: pspnet study --hours 8 --fraction 1/64 --fraction 1/16 --seeds 5
    """
    with terminal.stage("study") as tick:
        from pspnet.dataset.store.prepared import PreparedDataset
        from pspnet.study import studying as command
        from pspnet.study.training import Material

        asked = command.Asked(hours, fraction or [], masks or [], seeds, arm or [], steps or [], pretraining)
        material = Material(PreparedDataset.open(PREPARED), WEIGHTS / "imported")
        outcome = command.study(params_here(), material, asked, out, state(), terminal.note, tick)
    terminal.out.print(f"[bold]{escape(outcome.sentence)}[/]")
    terminal.out.print(outcome.progress, markup=False)
    terminal.out.print(str(out / "study.html"), markup=False)


@app.command(rich_help_panel=PIPELINE)
def schedule(
    cron: Annotated[str, typer.Option(help="When to retrain, in UTC: minute, hour, day of month, month, day of week.")],
    watch: Annotated[
        int, typer.Option(min=0, help="Seconds between checks for new data; 0 turns the checks off.")
    ] = 300,
    port: Annotated[int, typer.Option(help="The port of the Prefect UI on this machine.")] = 4200,
) -> None:
    """Retrain on a schedule and whenever there is new data, for as long as this command runs.

    Example: pspnet schedule --cron "0 3 * * 0"
    """
    configure_prefect(state())
    from flows.laptop import schedule as flow

    flow.schedule(state(), cron, watch, port)


@app.command(rich_help_panel=PIPELINE)
def deploy() -> None:
    """Deploy this commit to a Prefect server: pools, flows, schedules, and recovery when a machine dies.

    PREFECT_API_URL is the address of the server, such as http://prefect.example:4200/api.

    Example: pspnet deploy
    """
    from flows.team import deploy as team

    team.deploy()


@app.command(rich_help_panel=PIPELINE)
def worker(
    pool: Annotated[str, typer.Argument(help="A pool from prefect.yaml: cpu or gpu.")],
    limit: Annotated[
        int, typer.Option(min=1, help="The number of concurrent runs, including a retraining that waits for a GPU.")
    ] = 4,
    name: Annotated[str | None, typer.Option(help="The worker's name in the Prefect UI.")] = None,
) -> None:
    """Run flows from a Prefect server's pool on this machine, using this clone.

    PREFECT_API_URL is the address of the server, such as http://prefect.example:4200/api.

    Example: pspnet worker gpu --limit 1
    """
    configure_prefect(state())
    from flows.team import deploy as team

    team.worker(pool, limit, name)
