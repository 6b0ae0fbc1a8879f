"""`pspnet predict --model`: a registered version predicts with its own code, settings and bundle."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from pspnet import terminal
from pspnet.commands.workshop import Workshop
from pspnet.registry.provenance import PARAMS
from pspnet.registry.versions import Version, part
from pspnet.served import own_code_environment

COMMAND = "from pspnet.cli import main; main()"


def predict_with_version(shop: Workshop, version: Version, images: Path, out: Path, layout: str | None) -> NoReturn:
    """Our process becomes that of the version's own `pspnet predict`: signals and exit status are its own."""
    folder = shop.folder(version).resolve()
    # flows.predict reads this line, and none of the version's own: older code may say other things.
    terminal.err.print(f"by {shop.versions.model} version {version.number}", markup=False)
    own = {"--bundle": part(folder, "bundle"), "--params": part(folder, "provenance") / PARAMS, "--out": out}
    options = [str(word) for pair in own.items() for word in pair]
    if layout:
        options += ["--layout", layout]
    environment = own_code_environment() | {"PYTHONPATH": str(folder / "code")}
    os.execve(sys.executable, [sys.executable, "-P", "-c", COMMAND, "predict", str(images), *options], environment)  # noqa: S606
