"""`pspnet use`: one params.yaml for another, with the difference shown."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from pspnet import terminal
from pspnet.config.params import load_params
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from pspnet.outputs import whole_file


def use(recipe: Path, params: Path, backup: Path) -> None:
    load_params(recipe)
    try:
        before = dict(_flat(read_yaml(params)))
    except UserError:  # missing, or what one wants to be rid of
        before = {}
    after = dict(_flat(read_yaml(recipe)))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not keys:
        terminal.out.print(f"{params} says the same as {recipe} already.")
        return
    if params.exists():
        with whole_file(backup) as partial:
            partial.write_bytes(params.read_bytes())
    with whole_file(params) as partial:
        partial.write_bytes(recipe.read_bytes())
    table = Table("parameter", "before", "now", title=f"{params} is now {recipe}", title_justify="left")
    for key in keys:
        table.add_row(*map(escape, (key, str(before.get(key, "")), str(after.get(key, "")))))
    terminal.out.print(table)
    if backup.exists():
        terminal.out.print(f"What it was is in {backup}.")


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
