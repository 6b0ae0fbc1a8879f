"""`pspnet predict --model`: lets a registered version predict with its own code, settings and bundle."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from pspnet.machine import events, terminal
from pspnet.registry.model_registry import ModelRegistry
from pspnet.registry.provenance import PARAMS
from pspnet.registry.versions import part
from pspnet.serving.client import own_code_environment

COMMAND = "from pspnet.cli import main; main()"


def predict_with_version(registry: ModelRegistry, which: str, images: Path, out: Path, layout: str | None) -> NoReturn:
    """Replace this process with the version's own `pspnet predict`, so that signals and exit status are passed on."""
    version = registry.versions.get(which)
    folder = registry.folder(version).resolve()
    model = f"{registry.versions.model} version {version.number}"
    events.tell("result", model=model)
    terminal.err.print(f"by {model}", markup=False)
    own = {"--bundle": part(folder, "bundle"), "--params": part(folder, "provenance") / PARAMS, "--out": out}
    options = [str(word) for pair in own.items() for word in pair]
    if layout:
        options += ["--layout", layout]
    environment = own_code_environment() | {"PYTHONPATH": str(folder / "code")}
    if log := events.log():
        environment[events.VARIABLE] = str(log)  # the version reports progress and exit if its code is new enough
    os.execve(sys.executable, [sys.executable, "-P", "-c", COMMAND, "predict", str(images), *options], environment)  # noqa: S606
