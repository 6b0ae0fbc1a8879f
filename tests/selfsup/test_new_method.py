"""A new method needs only a module, its settings, an entry in METHODS and a test. No other file mentions the method."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import Field
from torch import Tensor, nn

from pspnet.config.params import Params
from pspnet.config.pretrain import MethodParams, PretrainParams
from pspnet.config.reading import read_yaml, validate
from pspnet.config.section import Section
from pspnet.errors import UserError
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.backbone.resnet import ResNet
from pspnet.selfsup import METHODS
from pspnet.selfsup.pretext import Crop, Pretext, Views
from tests.parameters import ROOT, changed
from tests.training.conftest import prepared
from tests.training.trainings import run_pretrain

__all__ = ["prepared"]


# The module that defines the method.


class Brightness(Pretext["BrightnessParams"]):
    """The network estimates how much darker the view is."""

    def __init__(self, backbone: ResNet, preprocessing: Preprocessing, params: "BrightnessParams") -> None:
        super().__init__(backbone, preprocessing, params)
        self.meter = nn.Linear(backbone.channels[-1], 1)

    @staticmethod
    def views(crop: Crop, params: "BrightnessParams", rng: np.random.Generator) -> Views:
        factor = rng.uniform(params.darkest, 1)
        return {"image": (crop() * factor).astype(np.uint8), "factor": np.float32(factor).reshape(1)}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        *_, c5 = self.backbone(self.preprocessing(views["image"]))
        error = (self.meter(c5.mean(dim=(2, 3))).float() - views["factor"]).abs().mean()
        return error, {"error": error}


# The method's settings, which would be in pspnet/config/pretrain.py.


class BrightnessParams(Section):
    kind: Literal["brightness"]
    darkest: Annotated[float, Field(gt=0, lt=1, examples=[0.5])]
    """The smallest factor on a view's pixels."""

    def check_views(self, crop_px: int, output_stride: int) -> None:
        pass


class WithBrightness(PretrainParams):
    method: Annotated[MethodParams | BrightnessParams, Field(discriminator="kind")]  # type: ignore[assignment]


class AllParams(Params):
    pretrain: WithBrightness


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method's entry in METHODS."""
    monkeypatch.setitem(METHODS, "brightness", Brightness)


def with_method(**settings: Any) -> AllParams:
    tiny = {
        "backbone__width": 0.125, "pretrain__epochs": 1, "pretrain__batch_size": 8, "pretrain__crop_px": 48,
        "runtime__threads": 1,
    }  # fmt: skip
    content = changed(read_yaml(ROOT / "params.yaml"), tiny | {"pretrain__method": {"kind": "brightness", **settings}})
    return validate(AllParams, content, "params.yaml")


@pytest.mark.usefixtures("method")
def test_it_trains_for_two_steps(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_LOADER_WORKERS", "0")
    steps: list[str] = []
    run_pretrain(with_method(darkest=0.5), prepared, tmp_path, lambda done, total, note: steps.append(note))
    assert len(steps) >= 2
    assert pd.read_csv(tmp_path / "history.csv")["error"].gt(0).all()
    assert '"method": "brightness"' in (tmp_path / "backbone/backbone.json").read_text()


def test_its_settings_are_checked() -> None:
    with pytest.raises(UserError) as error:
        with_method()
    meaning = "The smallest factor on a view's pixels. For example: 0.5"
    assert str(error.value) == f"params.yaml: 'pretrain.method.darkest' is missing. {meaning}"
    with pytest.raises(UserError, match=r"'pretrain\.method\.dark'; did you mean 'pretrain\.method\.darkest'"):
        with_method(dark=0.5)


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")], ids=lambda path: path.name)
def test_params_files_do_not_change(path: Path) -> None:
    validate(AllParams, read_yaml(path), path.name)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("jigsaw", "gap_px"), ("inpainting", "block_px")],
)
def test_only_three_package_files_name_a_method_or_its_settings(name: str, settings: str) -> None:
    naming = {
        path.relative_to(ROOT).as_posix()
        for package in ("pspnet", "flows")
        for path in (ROOT / package).rglob("*.py")
        if {name, settings} & set(words(path))
    }
    assert naming <= {f"pspnet/selfsup/{name}.py", "pspnet/config/pretrain.py", "pspnet/selfsup/__init__.py"}


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")], ids=lambda path: path.name)
def test_a_params_file_names_no_method_but_its_own(path: Path) -> None:
    own = read_yaml(path)["pretrain"]["method"]["kind"]
    section = path.read_text().partition("\npretrain:\n")[2].partition("\nfinetune:\n")[0]
    assert [name for name in METHODS if name != own and name in section.replace("rotation_degrees", "")] == []


def words(path: Path) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in path.read_text(encoding="utf-8")).split()
