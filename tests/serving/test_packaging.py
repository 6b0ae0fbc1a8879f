import json
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pspnet.config.params import load_params
from pspnet.model.backbone.digest import digest
from pspnet.registry.packaging import requirements, save_version
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise
from tests.serving.conftest import EXTRA, PARAMS
from tests.serving.processes import environment, predicted, text

SAVE = """
import json, sys
from pathlib import Path
from pspnet.machine.offline import go_offline
go_offline()
from pspnet.config.params import load_params
from pspnet.registry.packaging import save_version
bundle, params, extra, folder = sys.argv[1:]
extra = {name: Path(path) for name, path in json.loads(extra).items()}
save_version(Path(bundle), load_params(Path(params)), extra, Path(folder))
assert "torch" not in sys.modules
"""
LOAD_AND_ASK = """
import json, sys
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
import pspnet
table = model.predict(pandas.DataFrame({"image": json.load(sys.stdin)}))
print(json.dumps({"code": pspnet.__file__, "rows": table.to_dict("records")}))
"""


def mlmodel(version: Path) -> Any:
    return yaml.safe_load((version / "MLmodel").read_text())


@pytest.mark.e2e
def test_saving_prints_nothing(bundle: Path, version: Path, tmp_path: Path) -> None:
    extra = json.dumps({name: str(path) for name, path in EXTRA.items()})
    saving = subprocess.run(
        [sys.executable, "-c", SAVE, bundle, PARAMS, extra, tmp_path / "version"],
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (saving.stdout, saving.stderr, saving.returncode) == ("", "", 0)
    assert files_of(tmp_path / "version") == files_of(version)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_nothing_in_a_version_is_pickled(version: Path) -> None:
    pickled = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}
    files = [path for path in version.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if path.suffix in pickled]
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]  # every pickle starts with this byte
    assert "python_model" not in mlmodel(version)["flavors"]["python_function"]


def test_a_version_carries_the_package_and_nothing_else_from_the_checkout(version: Path) -> None:
    code = version / "code"
    names = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    expected = {str(path.relative_to(ROOT)) for kind in ("*.py", "*.j2") for path in (ROOT / "pspnet").rglob(kind)}
    assert names == expected
    assert (version / "model.py").read_bytes() == (ROOT / "pspnet/serving/model.py").read_bytes()


def test_artifacts_keep_their_names(version: Path, bundle: Path) -> None:
    artifacts = mlmodel(version)["flavors"]["python_function"]["artifacts"]
    expected = {name: f"artifacts/{name}" for name in ("bundle", "params.yaml", "decisions")}
    assert {name: facts["path"] for name, facts in artifacts.items()} == expected
    assert digest(version / "artifacts/bundle") == digest(bundle)
    assert (version / "artifacts/params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    decisions = {path.name for path in (version / "artifacts/decisions").iterdir()}
    assert decisions == {path.name for path in (ROOT / "docs/decisions").iterdir()}


@pytest.mark.filterwarnings("ignore")  # MLflow warns about its own code
def test_links_in_a_bundle_become_files_in_the_version(version: Path, bundle: Path, tmp_path: Path) -> None:
    """Where DVC's cache is shared, DVC checks out links."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in bundle.iterdir():
        (linked / path.name).symlink_to(path)
    save_version(linked, load_params(PARAMS), {}, tmp_path / "version")
    saved = list((tmp_path / "version/artifacts/bundle").iterdir())
    assert len(saved) == 2
    assert not any(path.is_symlink() for path in saved)
    assert digest(tmp_path / "version/artifacts/bundle") == digest(bundle)


def test_a_version_keeps_the_params_that_shape_its_answers(version: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    expected = {**params["predict"], **params["serve"], "precision": "fp32", "threads": 1}
    assert mlmodel(version)["flavors"]["python_function"]["config"] == expected


def test_a_version_declares_its_inputs_and_outputs_and_has_an_example(version: Path) -> None:
    signature = {name: json.loads(columns) for name, columns in mlmodel(version)["signature"].items() if columns}
    assert signature["inputs"] == [{"name": "image", "type": "string", "required": True}]
    assert {column["name"]: column["type"] for column in signature["outputs"]} == {
        "mask": "string", "height": "long", "width": "long", "confidence": "double", "shares": "map",
    }  # fmt: skip
    example = json.loads((version / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["columns"] == ["image"]


def test_requirements_are_pinned_to_installed_versions_without_the_engines(version: Path) -> None:
    pins = dict(line.split("==") for line in (version / "requirements.txt").read_text().splitlines())
    assert sorted(pins) == sorted(line.partition("==")[0] for line in requirements())
    assert {"torch", "torchvision", "mlflow", "pillow", "pydantic", "safetensors", "filelock"} <= set(pins)
    assert not {"dvc", "prefect", "fastapi", "pytest", "ruff"} & set(pins)
    assert all(pin == installed(name).partition("+")[0] for name, pin in pins.items())


@pytest.mark.e2e
def test_a_fresh_process_answers_with_the_bundles_masks_and_unpickles_nothing(
    version: Path, bundle: Path, tmp_path: Path
) -> None:
    images = [noise(30, 50), noise(64, 48, seed=1)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD_AND_ASK, str(version)],
        input=json.dumps([text(encoded(image)) for image in images]),
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert Path(answer["code"]) == version / "code/pspnet/__init__.py"
    for image, row in zip(images, answer["rows"], strict=True):
        assert np.array_equal(mask_of(row), predicted(bundle, image))
    assert not any(tmp_path.iterdir())  # neither an MLflow database nor a folder mlruns


def mask_of(row: dict[str, Any]) -> Any:
    from base64 import b64decode

    from pspnet.dataset.store.pixels import decode_mask

    return decode_mask(b64decode(row["mask"]))
