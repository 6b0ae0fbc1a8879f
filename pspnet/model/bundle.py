"""The bundle: the model as a single directory, with everything needed for prediction."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pspnet.model.backbone.facts import BUNDLE, BUNDLE_FORMAT, bundle_facts, write_json
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.weights import load_weights, save_weights
from pspnet.model.network import Architecture, PSPNet

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Bundle:
    network: PSPNet
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    pretraining: str
    # Fingerprints of train and perhaps unlabeled, which the model learned from, and val, which chose the epoch.
    fingerprints: dict[str, str]
    backbone_digest: str

    def save(self, folder: Path) -> None:
        save_weights(self.network, folder / WEIGHTS)
        facts = {
            "format_version": BUNDLE_FORMAT,
            "architecture": asdict(self.network.architecture),
            "preprocessing": asdict(self.preprocessing),
            "classes": self.classes,
            "colors": self.colors,
            "pretraining": self.pretraining,
            "fingerprints": self.fingerprints,
            "backbone_digest": self.backbone_digest,
        }
        write_json(facts, folder / BUNDLE)

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        facts = bundle_facts(folder)
        network = PSPNet(Architecture(**facts["architecture"]))
        load_weights(network, folder / WEIGHTS)
        return cls(
            network=network.eval(),
            preprocessing=Preprocessing(**{key: tuple(value) for key, value in facts["preprocessing"].items()}),
            classes=tuple(facts["classes"]),
            colors=tuple((r, g, b) for r, g, b in facts["colors"]),
            pretraining=facts["pretraining"],
            fingerprints=facts["fingerprints"],
            backbone_digest=facts["backbone_digest"],
        )
