"""Parameters for tests: the demo's parameters with a few changed numbers, and each method with its example settings."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from pspnet.config.finetune import UnlabeledParams
from pspnet.config.params import Params
from pspnet.config.pretrain import MethodParams
from pspnet.config.reading import read_yaml, validate

ROOT = Path(__file__).parents[1]
METHOD_PARAMS: dict[str, type[MethodParams]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(MethodParams)
}
UNLABELED_PARAMS: dict[str, type[UnlabeledParams]] = {
    get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(UnlabeledParams)
}


def demo_params(**changes: Any) -> Params:
    """`demo_params(finetune__epochs=1)` returns the demo's params with finetune.epochs set to 1."""
    return validate(Params, changed(read_yaml(ROOT / "params.yaml"), changes), "params.yaml")


def method_params(kind: str, **changes: Any) -> MethodParams:
    """Return the method's settings, each with the example value from its description."""
    return METHOD_PARAMS[kind].model_validate({"kind": kind, **_examples(METHOD_PARAMS[kind]), **changes})


def unlabeled_params(kind: str, **changes: Any) -> UnlabeledParams:
    """Return the same for a semi-supervised method."""
    return UNLABELED_PARAMS[kind].model_validate({"kind": kind, **_examples(UNLABELED_PARAMS[kind]), **changes})


def _examples(section: type[BaseModel]) -> dict[str, Any]:
    return {name: field.examples[0] for name, field in section.model_fields.items() if field.examples}


def changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Apply changes to `content`. If only `finetune__epochs` is given, the network is evaluated on val after each
    epoch.
    """
    if "finetune__epochs" in changes:
        changes = {"finetune__validations": changes["finetune__epochs"], **changes}
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    return content
