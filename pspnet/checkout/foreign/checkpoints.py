"""Reads tensors from other projects' files without running any code that the files may contain."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from pspnet.checkout.foreign.formats import CONTAINERS
from pspnet.errors import Problem, UserError
from pspnet.model.backbone.weights import read_safetensors

SETTINGS = Namespace  # checkpoints contain settings as well as tensors; loading this type runs no code


@dataclass(frozen=True)
class Checkpoint:
    tensors: Mapping[str, Tensor]
    classes: tuple[str, ...]  # class names from the file, or () if it has none
    colors: tuple[tuple[int, int, int], ...]


def read_checkpoint(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        return Checkpoint(read_safetensors(path), (), ())
    content = _load(path)
    found: Any = content
    for _ in CONTAINERS:  # containers can be nested; the limit stops at one that contains itself
        container = next((name for name in CONTAINERS if isinstance(_entry(found, name), Mapping)), None)
        found = found[container] if container else found
    tensors = {str(name): value for name, value in _items(found) if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(str(name) for name, _ in _items(content)[:5]) or type(content).__name__
        expected = f"tensors by name, or {', '.join(CONTAINERS)} with such tensors"
        raise UserError(Problem(str(path), f"has no tensors ({keys})", expected))
    return Checkpoint(tensors, *_classes(content))


def _load(path: Path) -> Any:
    try:
        with safe_globals([SETTINGS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        fix = "A pickle can run code, so only plain tensors are read: save only the state_dict, with the original code."
        raise UserError(Problem(str(path), f"contains more than tensors ({reason})", "a state_dict", fix)) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            Problem(str(path), f"cannot be read ({reason})", "a file from torch.save or safetensors")
        ) from None


def _entry(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, Mapping) else None


def _items(content: Any) -> list[tuple[Any, Any]]:
    return list(content.items()) if isinstance(content, Mapping) else []


def _classes(content: Any) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names and colors from mmsegmentation's `meta`, or in version 1 from `dataset_meta` in it."""
    meta = _entry(content, "meta")
    for place in (_entry(meta, "dataset_meta"), meta):
        names = _entry(place, "classes") or _entry(place, "CLASSES")
        if names:
            palette = _entry(place, "palette") or _entry(place, "PALETTE") or []
            return tuple(map(str, names)), tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return (), ()
