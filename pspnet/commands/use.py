"""`pspnet use`: one params.yaml for another, with the difference shown."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pspnet import terminal
from pspnet.config.params import differences, load_params
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from pspnet.outputs import whole_file


def use(recipe: Path, params: Path, backup: Path) -> None:
    load_params(recipe)
    try:
        before = read_yaml(params)
    except UserError:  # missing, or what one wants to be rid of
        before = {}
    differing = differences(before, read_yaml(recipe))
    if not differing:
        terminal.out.print(f"{params} says the same as {recipe} already.")
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
        terminal.out.print(f"What it was is in {backup}.")
