"""The "Model versions" panel: register, promote, roll back, seal, trace and reproduce versions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pspnet.cli.app import (
    BUNDLE,
    CHAMPION,
    HELP_NAMES,
    PARAMS,
    PREPARED,
    RAW,
    RECORDS,
    REGISTRY,
    REPORT,
    Json,
    app,
    registry_here,
    state,
)
from pspnet.machine import events, terminal

Version = Annotated[str, typer.Argument(help="The version: champion, challenger or a number.", metavar="VERSION")]
Why = Annotated[str, typer.Option(help="The reason, which is recorded in the audit.")]
PreparedNow = Annotated[
    Path, typer.Option(help="The current prepared dataset, whose test split is used to compare models.")
]
ReportNow = Annotated[Path, typer.Option(help="The bundle's report, as written by `evaluate`.")]

models_app = typer.Typer(invoke_without_command=True, context_settings=HELP_NAMES)


@app.command(rich_help_panel=REGISTRY)
def register(
    bundle: Annotated[Path, typer.Argument(help="The bundle, as written by `finetune`.")] = BUNDLE,
    report: ReportNow = REPORT,
    prepared: PreparedNow = PREPARED,
    records: Annotated[Path, typer.Option(help="The folder that contains the stages' run records.")] = RECORDS,
    promote: Annotated[bool, typer.Option("--promote", help="Also promote the version if it passes the gate.")] = False,
    as_json: Json = False,
) -> None:
    """Register a bundle as a version of the model named in `registry.model`. Registering it again changes nothing.

    Example: pspnet register --promote
    """
    from pspnet.registry import register_command as command

    command.register(state(), PARAMS, bundle, report, prepared, records, promote=promote, as_json=as_json)


@app.command(hidden=True)
def standing() -> None:
    """Used by `pspnet retrain`: report the headline that `register --promote` would print if it has nothing left to do.

    Reports nothing if `register --promote` would change something.

    Example: pspnet standing
    """
    from pspnet.checkout import doctor
    from pspnet.registry import preview as command
    from pspnet.registry.registration import Results

    if doctor.can_run(PARAMS, RAW):
        headline = command.headline(registry_here(), Results(BUNDLE, REPORT, PREPARED, RECORDS))
        events.tell("result", headline=headline)


@app.command(rich_help_panel=REGISTRY)
def promote(
    version: Annotated[str | None, typer.Argument(help="A version number. Defaults to the challenger.")] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Approve the promotion, for `promotion.approval: manual`.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Promote a version that the gate holds. Requires --why.")
    ] = False,
    why: Why = "",
    report: ReportNow = REPORT,
    prepared: PreparedNow = PREPARED,
    as_json: Json = False,
) -> None:
    """Make a version the champion if it passes the gate. Exits with status 1 if it is not the champion afterward.

    Example: pspnet promote 3 --approve
    """
    from pspnet.registry import promotion as command
    from pspnet.registry.evidence import LocalData

    if force and not why:
        raise typer.BadParameter("--force requires a reason, which is recorded in the audit", param_hint="--why")
    registry = registry_here()
    done = command.promote(
        registry,
        command.candidate(registry, version),
        LocalData(prepared, report),
        why=why,
        forced=force,
        approved=approve,
    )
    terminal.out.stderr = as_json
    command.show(registry, done)
    facts = {"headline": done.headline(registry.versions.model), **done.facts()}
    events.tell("result", **facts)
    if as_json:
        print(json.dumps(facts))  # noqa: T201
    if done.move is None and done.outcome != "is champion":
        raise typer.Exit(1)


@app.command(rich_help_panel=REGISTRY)
def rollback(
    to: Annotated[
        str | None, typer.Option(help="The version to go back to. Defaults to the previous champion.")
    ] = None,
    why: Why = "",
) -> None:
    """Make an earlier version the champion again. The rolled-back version is not promoted again automatically.

    Example: pspnet rollback --to 2 --why "misses scratches at night"
    """
    from pspnet.registry import promotion as command

    registry = registry_here()
    move = command.rollback(registry, to, why)
    terminal.out.print(f"{registry.versions.model}: version {move.to_version} replaces {move.from_version} as champion")


app.add_typer(models_app, name="models", rich_help_panel=REGISTRY)


@models_app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the versions with their aliases, test mIoU and decisions. See also `pspnet models history`.

    Example: pspnet models
    """
    if context.invoked_subcommand is None:
        from pspnet.registry import tables as command

        command.models(registry_here(), as_json)


@models_app.command("history")
def models_history(as_json: Json = False) -> None:
    """List every promotion and rollback: when, by whom, why, and between which versions.

    Example: pspnet models history
    """
    from pspnet.registry import tables as command

    command.history(registry_here(), as_json)


@models_app.command("seal")
def models_seal(version: Version) -> None:
    """Seal the files of a version that was registered without a seal or before PSPNET_AUDIT_KEY was set.

    Example: pspnet models seal 3
    """
    from pspnet.registry import promotion as command

    command.seal(registry_here(), version)


@app.command(rich_help_panel=REGISTRY)
def lineage(version: Version = CHAMPION, as_json: Json = False) -> None:
    """Show where a version comes from: data, runs, commit, params, packages, report and decisions.

    Example: pspnet lineage champion
    """
    from pspnet.registry import lineage as command

    command.lineage(registry_here(), version, as_json)


@app.command(rich_help_panel=REGISTRY)
def reproduce(
    version: Version,
    run_again: Annotated[
        bool, typer.Option("--run-again", help="Run every stage instead of taking results from DVC's cache.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the worktree afterwards.")] = False,
) -> None:
    """Rebuild a version from its commit and data, and compare the digests. Exits with status 1 if they differ.

    Example: pspnet reproduce 3
    """
    from pspnet.registry import reproduction as command

    command.reproduce(registry_here(), version, run_again, keep)
