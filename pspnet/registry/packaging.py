"""Packs a bundle as a version that MLflow can serve. The version includes code and settings, but no pickles."""

import importlib.metadata
import logging
import os
import re
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pspnet.config.params import Params
from pspnet.dataset.store.pixels import encode_image

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PACKAGE = Path(__file__).parents[1]
BUNDLE = "bundle"
CODE_SUFFIXES = (".py", ".j2")
NOT_NEEDED_TO_SERVE = {"dvc", "prefect", "fastapi"}  # fastapi is pinned only because of prefect


def save_version(bundle: Path, params: Params, extra: Mapping[str, Path], folder: Path) -> None:
    """Pack a version in `folder`, which must be empty or missing. `extra`: artifact name -> file or folder."""
    import mlflow.pyfunc
    from mlflow.utils import requirements_utils

    # Otherwise MLflow would read every installed file to compare `requirements` with the installed packages.
    requirements_utils._MODULES_TO_PACKAGES = {}  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        # Copied first, because MLflow rejects links, which DVC creates if its cache is shared, and because MLflow names
        # an artifact after the last part of its path.
        artifacts = {name: Path(temporary, "artifacts", name) for name in (BUNDLE, *extra)}
        for name, path in {BUNDLE: bundle, **extra}.items():
            _copy(path, artifacts[name])
        mlflow.pyfunc.save_model(
            path=folder,
            python_model=PACKAGE / "serving/model.py",
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(_copy_code(Path(temporary, "code")))],
            signature=_signature(),
            input_example=_example(),
            pip_requirements=list(requirements()),
            model_config=settings(params),
        )


def settings(params: Params) -> dict[str, Any]:
    """Return the version's model_config, which contains the settings that `serving.service` needs."""
    runtime = {"precision": params.runtime.precision, "threads": params.runtime.threads}
    return {**params.predict.model_dump(), **runtime, **params.serve.model_dump()}


def requirements() -> Iterator[str]:
    """Yield the packages needed for serving, pinned to the versions installed here."""
    for line in importlib.metadata.requires("pspnet") or []:
        name = re.split(r"[^\w.-]", line)[0]
        if "extra ==" not in line and name not in NOT_NEEDED_TO_SERVE:
            # Without the local version label, because 2.15.0+cpu, for example, is not on any public index.
            yield f"{name}=={importlib.metadata.version(name).partition('+')[0]}"


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Map, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "mask"),
                ColSpec(DataType.long, "height"),
                ColSpec(DataType.long, "width"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(Map(DataType.double), "shares"),
            ]
        ),
    )


def _copy(path: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copyfile(path, copy)


def _copy_code(folder: Path) -> Path:
    for path in PACKAGE.rglob("*"):
        if path.suffix in CODE_SUFFIXES:
            _copy(path, folder / path.relative_to(PACKAGE.parent))
    return folder / PACKAGE.name


def _example() -> pd.DataFrame:
    """Return an image of a bright disc on a dark background."""
    rows, columns = np.ogrid[:48, :64]
    pixels = np.where((rows - 24) ** 2 + (columns - 32) ** 2 < 18**2, 220, 40).astype(np.uint8)
    image = encode_image(np.repeat(pixels[..., None], 3, axis=2))
    return pd.DataFrame({"image": [b64encode(image).decode()]})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence MLflow's progress messages and bars, but not its warnings."""
    logger, bars = logging.getLogger("mlflow"), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    level, setting = logger.level, os.environ.get(bars)
    logger.setLevel(logging.WARNING)
    os.environ[bars] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        del os.environ[bars]
        if setting is not None:
            os.environ[bars] = setting
