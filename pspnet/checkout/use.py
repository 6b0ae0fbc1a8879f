"""`pspnet use`: replace params.yaml with a recipe and show the difference."""

from pathlib import Path

from pspnet.config.params import differences, load_params
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import replace_text


def use(recipe: Path, params: Path, backup: Path) -> None:
    load_params(recipe)
    try:
        before = read_yaml(params)
    except UserError:  # the params are missing or invalid, and will be replaced
        before = {}
    differing = differences(before, read_yaml(recipe))
    if not differing:
        terminal.out.print(f"{params} already equals {recipe}.")
        return
    replace_text(params, recipe.read_text(encoding="utf-8"), backup)
    terminal.print_differences(f"{params} is now {recipe}", differing)
    if backup.exists():
        terminal.out.print(f"The previous params are in {backup}.")
