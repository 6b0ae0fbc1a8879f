"""Keys: a run that is finished is made again only if its params, data, code or device change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pspnet.config.params import Params
from pspnet.machine.code import CODE, code_digest
from pspnet.model.backbone.digest import digest
from pspnet.study.training import Material
from pspnet.training.shared.checkpoint import training_digest

CODE_OF_RUNS = (*CODE["pretrain"], *CODE["finetune"], "study/subsets.py", "study/training.py")


@dataclass(frozen=True)
class Identity:
    """What the keys of runs have in common: data, code and device."""

    dependencies: dict[str, str]
    device: torch.device

    @classmethod
    def of(cls, material: Material, params: Params, device: torch.device) -> "Identity":
        imported = {"weights": digest(material.imported)} if params.backbone.weights == "imported" else {}
        fingerprints: dict[str, str] = dict(material.dataset.fingerprints.items())
        return cls({**fingerprints, **imported, "study": code_digest(CODE_OF_RUNS)}, device)

    def key(self, stage: str, params: Params, sections: Sequence[str], **facts: object) -> str:
        own = {name: getattr(params, name) for name in sections}
        told = {name: str(fact) for name, fact in facts.items()}
        return training_digest(stage, own, {**self.dependencies, **told}, self.device)
