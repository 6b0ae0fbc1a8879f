"""All of params.yaml, and the differences between two params files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pspnet.config.backbone import BackboneParams
from pspnet.config.dataset import DatasetParams
from pspnet.config.evaluate import EvaluateParams
from pspnet.config.finetune import FinetuneParams
from pspnet.config.predict import PredictParams
from pspnet.config.prepare import PrepareParams
from pspnet.config.pretrain import PretrainParams
from pspnet.config.promotion import PromotionParams
from pspnet.config.reading import read_yaml, validate
from pspnet.config.registry import RegistryParams
from pspnet.config.runtime import RuntimeParams
from pspnet.config.section import Section
from pspnet.config.serve import ServeParams


class Params(Section):
    dataset: DatasetParams
    prepare: PrepareParams
    backbone: BackboneParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    predict: PredictParams
    runtime: RuntimeParams
    registry: RegistryParams
    promotion: PromotionParams
    serve: ServeParams


def load_params(path: Path) -> Params:
    return validate(Params, read_yaml(path), path.name)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ between two params files, or parts of them, with both values. A missing value is
    None.
    """
    old, new = dict(_flat(then)), dict(_flat(now))
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
