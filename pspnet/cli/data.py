"""The `pspnet data` commands, which work on the raw data and the prepared dataset."""

from pathlib import Path
from typing import Annotated

import typer

from pspnet.cli.app import HELP_NAMES, PARAMS, PREPARED, RAW, START, TOOLS, Json, app, params_here, state
from pspnet.machine import terminal

data_app = typer.Typer(no_args_is_help=True, context_settings=HELP_NAMES)
app.add_typer(data_app, name="data", help="Inspect, add, export and compare data.", rich_help_panel=TOOLS)


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="A folder with images and masks in any layout.", metavar="DIR")],
    sheet: Annotated[
        Path, typer.Option(help="The PNG file to write, which shows some images with their masks.")
    ] = Path("inspect.png"),
    masks: Annotated[int, typer.Option(min=1, help="The maximum number of masks to read.")] = 200,
    use: Annotated[
        int | None,
        typer.Option(
            min=1, help="The number of the reading to use, if the folder can be read in several ways.", metavar="N"
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the params into params.yaml.")] = False,
    as_json: Json = False,
) -> None:
    """Detect a folder's layout and the values in its masks, and print or write matching params.

    Example: pspnet data inspect data/raw --write
    """
    from pspnet.inspection import console as command
    from pspnet.inspection.writing import Target

    if write and as_json:
        raise typer.BadParameter("give either --write or --json, not both", param_hint="OPTIONS")
    target = Target(PARAMS, RAW, START, backup=state() / "params.before.yaml") if write else None
    command.inspect(folder, sheet, masks, as_json, use, command.asked_for(PARAMS), target)


@data_app.command("add")
def data_add(
    batch: Annotated[
        Path | None, typer.Argument(help="A folder with the layout of the raw data, or a .zip or .tar of one.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The batch's folder inside images and masks. Defaults to the name of the batch.")
    ] = None,
    move: Annotated[bool, typer.Option("--move", help="Move the batch instead of copying it.")] = False,
    repository: Annotated[
        tuple[str, str] | None,
        typer.Option("--import", help="Import a folder from another DVC or git repository.", metavar="REPO PATH"),
    ] = None,
    rev: Annotated[str | None, typer.Option(help="With --import: a branch to follow, a tag or a commit.")] = None,
    url: Annotated[
        str | None, typer.Option("--import-url", help="Import a folder, such as s3://bucket/set.", metavar="URL")
    ] = None,
    raw: Annotated[Path, typer.Option(help="The folder that contains the raw data.")] = RAW,
) -> None:
    """Check a batch and add it to the raw data, or import the raw data. DVC then tracks the result.

    Example: pspnet data add deliveries/2024-05 --move
    """
    if sum(source is not None for source in (batch, repository, url)) != 1:
        raise typer.BadParameter("give a folder, --import or --import-url", param_hint="BATCH")
    if (rev and not repository) or ((name or move) and not batch):
        raise typer.BadParameter("--rev needs --import; --name and --move need a folder", param_hint="OPTIONS")
    if batch:
        from pspnet.checkout.adding import add

        add(batch, raw, params_here(), name, move, state())
        return
    from pspnet.checkout import importing as command

    if repository:
        command.import_from_repository(*repository, rev, raw, state())
    elif url:
        command.import_from_url(url, raw, state())


@data_app.command("export")
def data_export(
    prepared: Annotated[Path, typer.Argument(help="The prepared dataset, as written by `prepare`.")],
    out: Annotated[Path, typer.Argument(help="The folder to write images, masks, classes.yaml and splits.csv to.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Export only this split. Repeat for several splits.", metavar="SPLIT")
    ] = None,
) -> None:
    """Export a prepared dataset as files. Preparing these files with the layout `folder` gives the same dataset.

    Example: pspnet data export data/prepared exported --split train --split val
    """
    from pspnet.checkout import exporting as command

    with terminal.progress("export") as tick:
        command.export(prepared, out, split or [], tick)


@data_app.command("diff")
def data_diff(
    rev: Annotated[
        str, typer.Argument(help="A git commit, branch or tag whose dvc.lock records a prepared dataset.")
    ] = "HEAD",
    prepared: Annotated[Path, typer.Option(help="The current prepared dataset.")] = PREPARED,
    limit: Annotated[
        int, typer.Option(min=0, help="The maximum number of names to show of each kind; --json shows all of them.")
    ] = 10,
    as_json: Json = False,
) -> None:
    """Show what changed in the prepared dataset since a commit: images, masks, splits, quarantined files, classes,
    mask pixels.

    Example: pspnet data diff HEAD~1 --limit 3
    """
    from pspnet.checkout import revisions as command

    command.diff(rev, prepared, limit, as_json)
