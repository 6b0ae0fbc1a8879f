"""Parameters for tests: the committed demo, with a few numbers changed."""

from pathlib import Path
from typing import Any

from pspnet.config.params import Params
from pspnet.config.reading import read_yaml, validate

ROOT = Path(__file__).parents[1]


def demo_params(**changes: Any) -> Params:
    """`demo_params(finetune__epochs=1)` is the demo with finetune.epochs 1."""
    return validate(Params, changed(read_yaml(ROOT / "params.yaml"), changes), "params.yaml")


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    return content
