"""The `pspnet` command, with the options and paths that its help panels share.

Each command imports its dependencies only when it is called, so that `pspnet --help` is instant.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pspnet.machine.offline import STATE

if TYPE_CHECKING:
    from pspnet.config.params import Params
    from pspnet.registry.model_registry import ModelRegistry

PARAMS, PIPELINE_FILE, START = Path("params.yaml"), Path("dvc.yaml"), Path("recipes/start.yaml")
RAW, WEIGHTS, PREPARED, BACKBONE, BUNDLE = (
    Path(name) for name in ("data/raw", "data/weights", "data/prepared", "models/backbone", "models/segmenter")
)
REPORT, RECORDS, STUDY = Path("reports/evaluation"), Path("reports/runs"), Path("reports/study")
CHAMPION = "champion"

PIPELINE = "Pipeline"
STAGES = "Stages (called by DVC; `make retrain` runs those that changed)"
REGISTRY = "Model versions"
PREDICTIONS = "Predictions"
TOOLS = "Data and tools"

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Train, evaluate and promote a PSPNet segmentation model.",
    epilog="To try it, run `make demo`. For your own data, put it into data/raw, run "
    "`pspnet data inspect data/raw --write`, `pspnet plan --minutes 30` and `make retrain`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings=HELP_NAMES,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def state() -> Path:
    """The folder for checkpoints and other machine-specific state, none of which is an output of the pipeline."""
    return Path(os.environ.get("PSPNET_STATE", STATE))


def params_here() -> "Params":
    from pspnet.config.params import load_params

    return load_params(PARAMS)


def registry_here() -> "ModelRegistry":
    from pspnet.registry.model_registry import open_registry

    return open_registry(state(), params_here())
