"""`pspnet use`: replace params.yaml with a recipe and show the difference."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pspnet.config.params import differences, load_params
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_file


def use(recipe: Path, params: Path, backup: Path) -> None:
    load_params(recipe)
    try:
        before = read_yaml(params)
    except UserError:  # missing, or invalid and to be replaced
        before = {}
    differing = differences(before, read_yaml(recipe))
    if not differing:
        terminal.out.print(f"{params} already equals {recipe}.")
        return
    if params.exists():
        with whole_file(backup) as partial:
            partial.write_bytes(params.read_bytes())
    with whole_file(params) as partial:
        partial.write_bytes(recipe.read_bytes())
    table = Table("parameter", "before", "now", title=f"{params} is now {recipe}", title_justify="left")
    for key, values in differing.items():
        table.add_row(escape(key), *("" if value is None else escape(str(value)) for value in values))
    terminal.out.print(table)
    if backup.exists():
        terminal.out.print(f"The previous params are in {backup}.")
