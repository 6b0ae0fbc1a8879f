"""A version in its own process is queried from the process of a newer checkout."""

import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pspnet.config.params import load_params
from pspnet.dataset.annotated import Annotated
from pspnet.dataset.store.pixels import decode_mask
from pspnet.errors import UserError
from pspnet.evaluation.measuring import measure
from pspnet.model.bundle import Bundle
from pspnet.registry.packaging import settings
from pspnet.serving import client as module
from pspnet.serving.client import Ask, ServedPredictor, served, warm_process
from tests.parameters import ROOT
from tests.predicting import predictor
from tests.raw.rawdata import encoded, noise
from tests.serving.conftest import CLASSES, PARAMS
from tests.serving.processes import environment, predicted, process
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

ASK = """
import json, sys
from pathlib import Path
import pspnet.serving.client
from tests.raw.rawdata import encoded, noise
with pspnet.serving.client.served(Path(sys.argv[1])) as ask:
    [answer] = ask([encoded(noise(30, 50))])
print(json.dumps({"asked with": pspnet.serving.client.__file__, "mask": answer.mask.tolist()}))
"""

HOLD = """
import os, sys, time
from pathlib import Path
from pspnet.serving.client import served
version, sys.executable = sys.argv[1:]
with served(Path(version)):
    print("ready", os.getpid(), flush=True)
    time.sleep(1000)
"""


HOLD_CALL = """
import os, sys, time
from pspnet.serving.client import warm_process
sys.executable = sys.argv[1]
with warm_process() as call:
    call("signal.pause", 100, {})
    print("ready", os.getpid(), flush=True)
    time.sleep(1000)
"""
EXAMPLES = "pspnet.registry.expected.examples"


@pytest.fixture(scope="session")
def ask(version: Path, warm_python: str) -> Iterator[Ask]:
    """One worker, shared by the tests that do not change its state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python)
        opened = served(version)
        ask = opened.__enter__()
    try:
        yield ask
    finally:
        opened.__exit__(None, None, None)


@pytest.fixture
def warm(warm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", warm_python)


def test_answers_are_the_bundles_masks_with_confidence_and_shares(ask: Ask, bundle: Path) -> None:
    images = [noise(30, 50), noise(64, 48, seed=1)]
    answers = ask([encoded(image) for image in images])
    for image, answer in zip(images, answers, strict=True):
        assert np.array_equal(answer.mask, predicted(bundle, image))
        assert answer.mask.dtype == np.uint8
        assert 1 / len(CLASSES) < answer.confidence < 1
        assert answer.shares == {name: (answer.mask == number).mean() for number, name in enumerate(CLASSES)}


def test_a_local_client_has_no_request_limits(ask: Ask) -> None:
    assert len(ask([encoded(noise(8, 8))] * 20)) == 20  # over HTTP, the limit is 16 images


def test_the_worker_answers_again_after_a_bad_image(ask: Ask, version: Path) -> None:
    with pytest.raises(UserError) as error:
        ask([b"", encoded(noise(8, 8))])
    assert str(error.value) == f"{version}: image 1: is empty (0 bytes); expected an image"
    assert len(ask([encoded(noise(8, 8))])) == 1


def test_measuring_a_version_equals_measuring_its_bundle(ask: Ask, bundle: Path) -> None:
    random = np.random.default_rng(0)
    sizes = [(30, 50), (30, 50), (40, 20)]
    samples = [
        Annotated(f"{n}", "group", noise(*size, seed=n), random.integers(0, 4, size).astype(np.uint8))
        for n, size in enumerate(sizes)
    ]
    model = Bundle.load(bundle)
    torch.set_num_threads(1)
    asked, table = measure(ServedPredictor(ask), samples, CLASSES, 255, lambda done: None)
    expected, expected_table = measure(predictor(model), samples, CLASSES, 255, lambda done: None)
    assert np.array_equal(asked, expected)
    assert table.equals(expected_table)


def test_an_old_version_answers_with_its_own_code_when_a_newer_checkout_asks(
    version: Path, bundle: Path, newer_checkout: Path, warm_python: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [warm_python, "-P", "-c", ASK, str(version)],
        env=environment(PYTHONPATH=f"{newer_checkout}:{ROOT}"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["asked with"] == str(newer_checkout / "pspnet/serving/client.py")
    assert np.array_equal(answer["mask"], predicted(bundle, noise(30, 50)))


def test_a_worker_uses_the_versions_code_even_if_another_pspnet_is_first_on_the_path(
    version: Path, newer_checkout: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", str(newer_checkout / "pspnet/serving/worker.py")],
        env=environment(PYTHONPATH=str(newer_checkout)),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(json.dumps({"folder": str(version)}) + "\n")
        worker.stdin.flush()
        answer = json.loads(worker.stdout.readline())
    assert answer == {"ready": True, "code": str(version / "code/pspnet")}
    assert worker.returncode == 0


@pytest.mark.usefixtures("warm")
def test_a_version_that_cannot_be_loaded_is_reported_with_its_last_lines(version: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(version, broken)
    (broken / "artifacts/bundle/model.safetensors").unlink()
    with pytest.raises(RuntimeError) as error, served(broken):
        pass
    first, *said = str(error.value).splitlines()
    assert first == f"{broken}: the version cannot be loaded (it ended with 1). Its last lines:"
    assert "model.safetensors" in said[-1]


@pytest.mark.usefixtures("warm")
def test_settings_for_a_server_do_not_change_a_measurement(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This setting would prevent loading the version.
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"threads": 0}')
    with served(version) as ask:
        assert len(ask([encoded(noise(8, 8))])) == 1


def test_a_folder_that_is_not_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error, served(tmp_path):
        pass
    assert str(error.value) == f"{tmp_path}: contains no MLmodel; expected the folder of a registered version"


def test_a_version_that_takes_too_long_is_abandoned(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match=r"the version cannot be loaded \(nothing within 0 s\)"), served(version):
        pass


@pytest.mark.usefixtures("warm")
def test_an_answer_that_takes_too_long_is_abandoned(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(version) as ask:
        monkeypatch.setattr(module, "SECONDS_PER_IMAGE", 0.001)
        with pytest.raises(RuntimeError, match=r"no answer for 1 image\(s\) \(nothing within 0 s\)"):
            ask([encoded(noise(300, 400))])


def test_a_worker_dies_with_the_asking_process(version: Path, warm_python: str, tmp_path: Path) -> None:
    def ready() -> str:
        text = (tmp_path / "log").read_text()
        assert started.poll() is None, text
        return text if text.endswith("\n") else ""

    with process([warm_python, "-c", HOLD, version, sys.executable], tmp_path) as started:
        asker = int(wait_until(ready).split()[-1])
        [worker] = psutil.Process(asker).children()
        os.kill(asker, signal.SIGKILL)
        _, alive = psutil.wait_procs([worker], timeout=60)
        assert not alive


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def examples_of(bundle: Path) -> dict[str, object]:
    return {"bundle": str(bundle), "prepared": "nowhere", "settings": settings(load_params(PARAMS))}


def test_one_process_runs_todays_code_on_the_bundle_and_then_the_versions_own(version: Path, bundle: Path) -> None:
    before = children()
    with warm_process() as call:
        [started] = [process for process in children() if process not in before]
        [(image, mask)] = call(EXAMPLES, 100, examples_of(bundle))()
        with served(version) as ask:  # this raises an error unless the code is the version's own
            [answer] = ask([b64decode(image)])
            assert [process for process in children() if process not in before] == [started]
    assert np.array_equal(answer.mask, decode_mask(b64decode(mask)))
    assert len(np.unique(answer.mask)) > 1
    assert not started.is_running()


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("function", ["os.getpid", EXAMPLES])
def test_a_version_answers_even_if_nobody_waited_for_the_call(version: Path, function: str) -> None:
    with warm_process() as call:
        # Nobody sees the error of this call.
        call(function, 100, examples_of(version / "nowhere") if function == EXAMPLES else {})
        with served(version) as ask:
            assert len(ask([encoded(noise(8, 8))])) == 1


@pytest.mark.usefixtures("warm")
def test_a_user_error_of_the_called_function_is_passed_on(tmp_path: Path) -> None:
    with warm_process() as call, pytest.raises(UserError) as error:
        call(EXAMPLES, 100, examples_of(tmp_path))()
    assert str(error.value).startswith(f"{tmp_path}/model.json: is missing; expected the output of a stage")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        ("json.loads", {"s": "{"}, "1"),
        ("os._exit", {"status": 3}, "3"),
        ("os.abort", {}, "-6"),
    ],
)
def test_a_called_function_that_fails_is_reported_with_its_last_lines(
    function: str, arguments: dict[str, object], reason: str
) -> None:
    with warm_process() as call, pytest.raises(RuntimeError) as error:
        call(function, 100, arguments)()
    first, *said = str(error.value).splitlines()
    assert first == f"{function}: no result (it ended with {reason}). Its last lines:"
    assert function != "json.loads" or said[-1].startswith("json.decoder.JSONDecodeError: Expecting property name")


def test_a_call_that_takes_too_long_is_abandoned_and_leaves_no_process() -> None:
    before = children()
    with warm_process() as call:
        result = call("signal.pause", 0.5, {})
        new = wait_until(lambda: found if len(found := [*set(children()) - set(before)]) == 2 else [])
        with pytest.raises(RuntimeError, match=r"signal.pause: no result \(nothing within 0 s\)"):
            result()
    _, alive = psutil.wait_procs(new, timeout=60)
    assert not alive


def test_a_call_dies_with_the_asking_process(warm_python: str, tmp_path: Path) -> None:
    with process([warm_python, "-c", HOLD_CALL, sys.executable], tmp_path) as started:

        def both() -> list[psutil.Process]:
            text = (tmp_path / "log").read_text()
            assert started.poll() is None, text
            found = psutil.Process(int(text.split()[-1])).children(recursive=True) if text.endswith("\n") else []
            return found if len(found) == 2 else []

        worker, child = wait_until(both)
        os.kill(worker.ppid(), signal.SIGKILL)
        _, alive = psutil.wait_procs([worker, child], timeout=60)
        assert not alive
