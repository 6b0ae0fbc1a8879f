"""The whole of params.yaml."""

from pathlib import Path

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
