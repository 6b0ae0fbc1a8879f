"""A version served by MLflow's own command in an environment with a different pspnet first on the path."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.network import free_port
from tests.raw.rawdata import encoded, noise
from tests.serving.processes import (
    BIN,
    environment,
    png_of_zeros,
    post,
    predicted,
    process,
    split,
    wait_for_ping,
    without_code,
)


@pytest.fixture(scope="session")
def port(
    version: Path, newer_checkout: Path, warm_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Start `mlflow models serve` in a newer checkout."""
    folder, port = tmp_path_factory.mktemp("models_serve"), free_port()
    command = [warm_python, BIN / "mlflow", "models", "serve", "-m", version, "--env-manager", "local", "-p", str(port)]
    settings = {"PYTHONPATH": str(newer_checkout), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    with process(command, folder, **settings) as started:
        wait_for_ping(started, port, folder)
        yield port


@pytest.mark.e2e
def test_an_old_version_answers_with_its_own_code_in_a_newer_checkout(
    port: int, bundle: Path, newer_checkout: Path, warm_python: str
) -> None:
    image = noise(30, 50)
    answered = post(port, split(encoded(image))).mask()
    assert np.array_equal(answered, predicted(bundle, image))
    code = (
        "import sys, numpy, torch; from pathlib import Path; from pspnet.model.bundle import Bundle\n"
        "from tests.predicting import predictor; from tests.raw.rawdata import noise\n"
        "p = predictor(Bundle.load(Path(sys.argv[1])))\n"
        "print(p.predict(noise(30, 50)[None])[0].mask.tolist())"
    )
    python_path = f"{newer_checkout}:{Path(__file__).parents[2]}"
    newer = subprocess.run(
        [warm_python, "-P", "-c", code, str(bundle)],
        env=environment(PYTHONPATH=python_path), capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    assert not np.array_equal(answered, json.loads(newer.stdout))  # otherwise this test could not fail


@pytest.mark.e2e
def test_every_request_format_of_mlflow_is_accepted(port: int, bundle: Path) -> None:
    image = noise(30, 50)
    expected = predicted(bundle, image)
    [[sent]] = split(encoded(image))["dataframe_split"]["data"]
    for request in (
        {"dataframe_records": [{"image": sent}]},
        {"inputs": [sent]},
        {"inputs": {"image": [sent]}},
        {"instances": [{"image": sent}]},
        {"instances": [sent]},
    ):
        assert np.array_equal(post(port, request).mask(), expected)
    assert np.array_equal(post(port, f"image\n{sent}\n".encode(), "text/csv").mask(), expected)


@pytest.mark.e2e
def test_a_bad_request_gets_400_with_a_short_message_and_without_a_traceback(port: int) -> None:
    sound = encoded(noise(30, 50))
    bomb = png_of_zeros(50_000, 50_000, data=b"\0")
    zeros = png_of_zeros(20_000, 20_000)
    refused = post(port, split(sound, b"words", None, "", sound[:900], bomb, zeros))
    assert refused.status == 400
    assert refused.content == {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": "6 problems:\n"
        "  image 2: cannot be recognized as an image; expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF. "
        "Export it again or remove it: it is another kind of file, or its beginning is damaged.\n"
        "  image 3: is null; expected base64 of an image file\n"
        "  image 4: is empty (0 bytes); expected an image\n"
        "  image 5: cannot be decoded (image file is truncated); expected a complete image\n"
        "  image 6: has 2,500.0 megapixels; expected at most 25.0 (serve.max_megapixels). "
        "Cut it into tiles or raise serve.max_megapixels.\n"
        "  image 7: has 400.0 megapixels; expected at most 25.0 (serve.max_megapixels). "
        "Cut it into tiles or raise serve.max_megapixels.",
    }


@pytest.mark.e2e
def test_a_request_without_images_or_with_too_many_gets_400(port: int) -> None:
    none, many = post(port, split()), post(port, split(*[encoded(noise(8, 8))] * 17))
    assert (none.status, none.message) == (400, "request: contains no image; expected from 1 to 16")
    assert (many.status, many.message) == (
        400,
        "request: contains 17 images; expected at most 16 (serve.max_images). Send them in several requests.",
    )
    wrong = post(port, {"dataframe_split": {"columns": ["picture"], "data": [["a"]]}})
    assert wrong.status == 400
    assert "Model is missing inputs ['image']. Note that there were extra inputs: ['picture']." in wrong.message
    assert post(port, split(encoded(noise(8, 8)))).status == 200  # the server still answers after that


@pytest.mark.e2e
def test_a_process_that_uses_a_different_pspnet_cannot_load_a_version(
    version: Path, tmp_path: Path, warm_python: str
) -> None:
    code = "import pspnet.errors, mlflow.pyfunc, sys; mlflow.pyfunc.load_model(sys.argv[1])"
    command = [warm_python, "-c", code, str(version)]
    done = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    package = Path(__file__).parents[2] / "pspnet"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"RuntimeError: {version}: this process uses the pspnet of {package}; expected the version's own in "
        f"{version}/code. Load the version in a process that has not imported pspnet (pspnet.serving.client does)."
    )


@pytest.fixture
def own_code(version: Path, tmp_path: Path) -> Path:
    """A copy of the version without its code, so that this process can load it with this checkout's code."""
    return without_code(version, tmp_path / "own")


@pytest.mark.filterwarnings("ignore")  # MLflow warns about its own code
def test_limits_can_be_changed_at_load_and_failures_hide_their_traceback(
    own_code: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    model = mlflow.pyfunc.load_model(str(own_code), model_config={"max_images": 1})
    service = model.unwrap_python_model()._service

    def answer() -> tuple[int, str]:
        with pytest.raises(MlflowException) as error:
            model.predict(pd.DataFrame({"image": ["", ""]}))
        refused: Any = error.value
        return refused.get_http_status_code(), json.loads(refused.serialize_as_json())["message"]

    def failing(error: BaseException) -> Callable[[Any, Any], Any]:
        def fail(table: Any, given_up: Any) -> Any:
            raise error

        return fail

    message = "request: contains 2 images; expected at most 1 (serve.max_images). Send them in several requests."
    assert answer() == (400, message)
    monkeypatch.setattr(service, "answer", failing(MemoryError()))
    message = "The request needs more memory than is free. Try again, or send fewer or smaller images."
    assert answer() == (503, message)
    monkeypatch.setattr(service, "answer", failing(ZeroDivisionError("a bug")))
    assert answer() == (500, "The server failed; see its log.")
    assert "ZeroDivisionError: a bug" in caplog.text
