"""Weights on disk: safetensors only, loaded completely or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pspnet.errors import Problem, UserError


def save_weights(module: nn.Module, path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, path)


def load_weights(module: nn.Module, path: Path) -> None:
    load_tensors(module, read_safetensors(path), str(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(Problem(str(path), f"cannot be read as safetensors ({error})")) from None


def load_tensors(module: nn.Module, found: Mapping[str, Tensor], where: str) -> None:
    """Load exactly the tensors of `module`, or raise a UserError, because a weight left random would go unnoticed."""
    wanted = module.state_dict()
    if problems := list(_differences(wanted, found)):
        raise UserError(Problem(where, "does not fit this network: " + "; ".join(problems)))
    module.load_state_dict(found, strict=True)


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    common = wanted.keys() & found.keys()
    shapes = [
        f"{name} is {tuple(found[name].shape)} and should be {tuple(wanted[name].shape)}"
        for name in sorted(common)
        if found[name].shape != wanted[name].shape
    ]
    groups = [
        ("missing", sorted(wanted.keys() - common)),
        ("not known", sorted(found.keys() - common)),
        ("of a different shape", shapes),
    ]
    return [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if names[3:] else ''})" for kind, names in groups if names
    ]
