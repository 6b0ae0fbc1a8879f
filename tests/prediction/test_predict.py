import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pspnet.cli import prediction
from pspnet.config.params import Params
from pspnet.errors import Busy, Interrupted, Problem, UserError
from pspnet.machine.process import exclusive
from pspnet.model.backbone.digest import digest
from pspnet.model.backbone.preprocessing import Preprocessing
from pspnet.model.bundle import Bundle
from pspnet.model.network import PSPNet
from pspnet.prediction import submission
from pspnet.prediction.image_folder import predict_folder
from pspnet.raw.classes import first_few
from pspnet.raw.layouts.cityscapes import LABEL_IDS
from tests.command import PSPNET, pspnet
from tests.files import contents
from tests.parameters import ROOT
from tests.predicting import predictor
from tests.raw.rawdata import Pixels, encoded, noise, png_claiming, write
from tests.stages.conftest import bundle, foreign_bundle, params, prepared
from tests.training.conftest import quiet
from tests.waiting import wait_until

__all__ = ["bundle", "foreign_bundle", "params", "prepared"]
Tick = Callable[[int, int, str], None]


@pytest.fixture
def images(prepared: Path, tmp_path: Path) -> Path:
    """Create images of every kind that users have, and two files that are not images."""
    folder = tmp_path / "images"
    street = np.array(Image.open(prepared.parent / "raw/images/street00000_0.png"))
    gray = street[..., 0]
    files = {
        "a street.png": encoded(street),
        "deep/er/turned.jpg": encoded(street[:48], "JPEG", orientation=6, quality=95),
        "gray.png": encoded(gray),
        "gray16.png": encoded(gray.astype(np.uint16) * 257),
        "no image.png": b"These are words.\n",
        "straße.png": encoded(noise(40, 50)),
        "transparent.png": encoded(np.dstack([street, np.full_like(gray, 100)])),
        "notes.txt": b"",
        ".hidden.png": b"of the system",
    }
    for name, data in files.items():
        write(folder / name, data)
    return folder


def run(params: Params, images: Path, bundle: Path, out: Path, tick: Tick = quiet) -> list[Problem]:
    return run_all(params, images, [bundle], out, tick=tick)


def run_all(
    params: Params, images: Path, bundles: list[Path], out: Path, layout: str | None = None, tick: Tick = quiet
) -> list[Problem]:
    return predict_folder(
        params.prepare, params.predict, params.runtime,
        images=images, bundles=bundles, out=out, layout=layout, tick=tick,
    )  # fmt: skip


def stopping_after(ticks: int) -> Tick:
    def tick(done: int, total: int, note: str) -> None:
        if done == ticks:
            raise Interrupted(130)

    return tick


def predicted(bundle: Path, image: Pixels, window_px: int = 1024) -> NDArray[np.uint8]:
    model = Bundle.load(bundle)
    [prediction] = predictor(model, window_px=window_px).predict(image[None])
    return prediction.mask


def read_table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "predictions.parquet")


def times(folder: Path) -> dict[Path, int]:
    """Return each file's modification time, except that of the lock, which each run opens for writing."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


AT_REST = {"predictions.parquet", "settings.json", ".digests.parquet", ".lock"}
SOUND = ["a street.png", "deep/er/turned.jpg", "gray.png", "gray16.png", "straße.png", "transparent.png"]


def test_every_sound_image_becomes_a_mask_an_overlay_and_a_row(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int, str]] = []
    run(params, images, bundle, out, lambda *tick: seen.append(tick))
    expected = {f"{kind}/{name}.png" for kind in ("masks", "overlays") for name in SOUND}
    assert set(contents(out)) == expected | AT_REST
    assert read_table(out)["image"].tolist() == SOUND
    assert seen == [(done, 8, "images") for done in range(1, 9)]


def test_masks_hold_class_indices_in_the_bundles_colors(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "out")
    image = np.array(Image.open(images / "a street.png"))
    mask = Image.open(tmp_path / "out/masks/a street.png.png")
    assert (mask.mode, mask.size) == ("P", (128, 96))
    assert np.array_equal(np.array(mask), predicted(bundle, image))
    assert len(np.unique(np.array(mask))) > 2
    colors = np.array(Bundle.load(bundle).colors, np.uint8)
    shown = np.array(mask.convert("RGB"))
    assert np.array_equal(shown, colors[np.array(mask)])
    overlay = np.array(Image.open(tmp_path / "out/overlays/a street.png.png")).astype(int)
    assert np.abs(overlay - (image.astype(int) + shown) / 2).max() <= 1


def test_images_are_seen_upright_with_8_bits_and_without_alpha(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "out")
    masks = {name: np.array(Image.open(tmp_path / f"out/masks/{name}.png")) for name in SOUND}
    upright = np.rot90(np.array(Image.open(images / "deep/er/turned.jpg")), -1)
    assert upright.shape == (128, 48, 3)
    assert np.array_equal(masks["deep/er/turned.jpg"], predicted(bundle, np.ascontiguousarray(upright)))
    gray = np.array(Image.open(images / "gray.png"))
    assert np.array_equal(masks["gray.png"], predicted(bundle, np.dstack([gray] * 3)))
    assert np.array_equal(masks["gray16.png"], masks["gray.png"])
    assert np.array_equal(masks["transparent.png"], masks["a street.png"])


def test_a_row_states_size_confidence_and_share_of_each_class(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "out")
    table = read_table(tmp_path / "out").set_index("image")
    classes = Bundle.load(bundle).classes
    assert list(table) == ["sha256", "height", "width", "confidence", *(f"share_{name}" for name in classes)]
    shares = table[[f"share_{name}" for name in classes]]
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    for name in SOUND:
        mask = np.array(Image.open(tmp_path / f"out/masks/{name}.png"))
        assert (table.loc[name, "height"], table.loc[name, "width"]) == mask.shape
        assert np.allclose(shares.loc[name], [(mask == number).mean() for number in range(len(classes))], atol=1e-6)
    assert table["confidence"].between(1 / len(classes), 1).all()


def test_the_table_has_typed_columns(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    run(params, images, bundle, tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out/predictions.parquet")
    shares = {f"share_{name}": "float" for name in Bundle.load(bundle).classes}
    assert {field.name: str(field.type) for field in schema} == {
        "image": "string", "sha256": "string", "height": "int32", "width": "int32", "confidence": "float", **shares,
    }  # fmt: skip


def test_a_file_that_is_not_an_image_is_named_and_the_rest_is_predicted(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    refused = [str(problem) for problem in run(params, images, bundle, tmp_path / "out")]
    formats = "expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF. Export it again or remove it: it is another kind of "
    assert refused == [
        f"{images}/no image.png: cannot be recognized as an image; {formats}file, or its beginning is damaged.",
        f"{images}/notes.txt: is empty (0 bytes); expected an image",
    ]
    assert len(read_table(tmp_path / "out")) == len(SOUND)


def test_an_image_with_more_pixels_than_allowed_is_skipped(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    small = params.model_copy(update={"prepare": params.prepare.model_copy(update={"max_megapixels": 0.01})})
    refused = run(small, images, bundle, tmp_path / "out")
    assert "has 0.0 megapixels" in refused[0].found
    assert read_table(tmp_path / "out")["image"].tolist() == ["deep/er/turned.jpg", "straße.png"]


@pytest.mark.parametrize("ticks", [1, 4, 8])
def test_a_stopped_and_resumed_run_ends_the_same_and_predicts_nothing_twice(
    params: Params, images: Path, bundle: Path, tmp_path: Path, ticks: int
) -> None:
    run(params, images, bundle, tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run(params, images, bundle, out, stopping_after(ticks))
    assert not (out / "predictions.parquet").exists()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 2 <= len(written) <= 2 * len(SOUND)
    seen: list[tuple[int, int, str]] = []
    run(params, images, bundle, out, lambda *tick: seen.append(tick))
    assert seen[0] == (len(written) // 2, 8, "images")
    assert contents(out) == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_an_incomplete_last_row_is_dropped(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    run(params, images, bundle, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(params, images, bundle, tmp_path / "stopped", stopping_after(8))
    rows = (tmp_path / "stopped/.rows.jsonl").read_bytes()
    in_eszett = rows.index("ß".encode()) + 1  # in the middle of a character
    for cut in (len(rows) - 1, len(rows) - 20, in_eszett, 10, 0):
        out = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "stopped", out)
        (out / ".rows.jsonl").write_bytes(rows[:cut])
        run(params, images, bundle, out)
        assert contents(out) == whole


def kill_at_every_moment(images: Path, bundle: Path, before: Path, expected: Path, work: Path, mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.prediction.killed", images, bundle, before, expected, work, mode], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture
def few(images: Path, tmp_path: Path) -> Path:
    """Create three images, one of them in its own folders, and a file that is not an image."""
    folder = tmp_path / "few"
    for name in ("straße.png", "deep/er/turned.jpg", "gray.png", "no image.png"):
        write(folder / name, (images / name).read_bytes())
    return folder


def change(few: Path) -> None:
    """Change the folder: one image is new, one has changed, one is unreadable, and one is gone
    along with its folders.
    """
    write(few / "new/one.png", encoded(noise(20, 30)))
    write(few / "gray.png", encoded(noise(30, 20)))
    write(few / "straße.png", b"These are words.\n")
    shutil.rmtree(few / "deep")


@pytest.mark.kills
@pytest.mark.parametrize(("mode", "least"), [("once", 30), ("again and again", 15)])
@pytest.mark.parametrize("is_first", [True, False], ids=["the first run", "a later run"])
def test_a_run_after_a_kill_ends_as_if_nothing_had_been_killed(
    params: Params, few: Path, bundle: Path, tmp_path: Path, is_first: bool, mode: str, least: int
) -> None:
    """The run is killed just before each change that it makes to the folder. Readers always find complete data."""
    before, expected = tmp_path / "before", tmp_path / "expected"
    if not is_first:
        run(params, few, bundle, before)
        change(few)
    run(params, few, bundle, expected)
    assert kill_at_every_moment(few, bundle, before, expected, tmp_path / "work", mode) >= least


@pytest.mark.e2e
def test_the_killed_command_resumes(images: Path, bundle: Path, tmp_path: Path) -> None:
    """SIGKILL is sent from outside while the command is working."""
    for number in range(60):
        write(images / f"many/{number:02}.png", encoded(noise(200, 150, seed=number)))

    def words(out: str) -> tuple[str, ...]:
        own = ("predict", images, "--out", tmp_path / out, "--bundle", bundle, "--params", ROOT / "params.yaml")
        return tuple(map(str, own))

    def finished() -> int:
        return len(list((tmp_path / "killed/masks").rglob("*.png")))

    log = tmp_path / "log"
    for wanted in (1, 25):
        with log.open("ab") as file:
            process = subprocess.Popen([PSPNET, *words("killed")], cwd=tmp_path, stdout=file, stderr=file)
        wait_until(lambda: process.poll() is not None or finished() >= wanted, pause=0.005)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
        assert finished() < 60
    for out in ("killed", "whole"):
        assert pspnet(*words(out), cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_second_run_has_nothing_left_to_do(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    run(params, images, bundle, tmp_path / "out")
    before, written = contents(tmp_path / "out"), times(tmp_path / "out")
    refused = run(params, images, bundle, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert times(tmp_path / "out") == written
    assert [Path(problem.where).name for problem in refused] == ["no image.png", "notes.txt"]


def test_a_file_of_unchanged_size_and_time_is_not_read_again(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = images / "gray.png"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    run(params, images, bundle, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    run(params, images, bundle, tmp_path / "out")
    assert "gray.png" not in read_table(tmp_path / "out")["image"].tolist()


def test_an_image_that_was_only_touched_keeps_its_mask(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(params, images, bundle, out)
    before, written = contents(out), times(out)
    os.utime(images / "gray.png", ns=(0, 0))
    run(params, images, bundle, out)
    touched, now = contents(out), times(out)
    assert touched.pop(".digests.parquet") != before.pop(".digests.parquet")
    assert touched == before
    assert {path: now[path] for path in out.rglob("*.png")} == {path: written[path] for path in out.rglob("*.png")}
    run(params, images, bundle, out)
    assert times(out) == now


def test_the_folder_follows_the_images(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    """After images have been added, changed, removed or damaged, the folder equals a folder created from scratch."""
    out = tmp_path / "out"
    run(params, images, bundle, out)
    masks = {name: (out / f"masks/{name}.png").stat().st_mtime_ns for name in SOUND}
    write(images / "gray.png", encoded(noise(30, 20)))
    write(images / "a/b.png", encoded(noise(20, 30)))
    shutil.rmtree(images / "deep")
    (images / "gray16.png").write_bytes(b"")
    (images / "transparent.png").rename(images / "see through.png")
    run(params, images, bundle, out)
    table = read_table(out).set_index("image")
    names = ["a street.png", "a/b.png", "gray.png", "see through.png", "straße.png"]
    assert list(table.index) == names
    assert table.loc["gray.png", ["height", "width"]].tolist() == [30, 20]
    assert np.array(Image.open(out / "masks/gray.png.png")).shape == (30, 20)
    assert set(contents(out)) == {f"{kind}/{name}.png" for kind in ("masks", "overlays") for name in names} | AT_REST
    assert not (out / "masks/deep").exists()
    for name in ("a street.png", "straße.png"):
        assert (out / f"masks/{name}.png").stat().st_mtime_ns == masks[name]
    run(params, images, bundle, tmp_path / "new")
    assert contents(tmp_path / "new") == contents(out)


@pytest.mark.parametrize("lost", ["masks/gray.png.png", "overlays/gray.png.png", "predictions.parquet", "masks"])
def test_removed_pictures_are_made_again(params: Params, images: Path, bundle: Path, tmp_path: Path, lost: str) -> None:
    out = tmp_path / "out"
    run(params, images, bundle, out)
    before = contents(out)
    shutil.rmtree(out / lost) if (out / lost).is_dir() else (out / lost).unlink()
    run(params, images, bundle, out)
    assert contents(out) == before


def test_other_files_next_to_the_masks_are_kept(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(params, images, bundle, out)
    corrected = write(out / "masks/deep/er/turned.corrected.png", encoded(noise(2, 2)))
    shutil.rmtree(images / "deep")
    run(params, images, bundle, out)
    assert [path for path in (out / "masks/deep").rglob("*") if path.is_file()] == [corrected]


def test_masks_of_one_image_folder_are_not_replaced_by_those_of_another(
    params: Params, images: Path, few: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=f"out: contains predictions of the images in {images}. Give another folder"):
        run(params, few, bundle, tmp_path / "out")
    for path in images.rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match="contains no files"):  # the images may be on an unmounted disk
        run(params, images, bundle, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.skipif(os.getuid() == 0, reason="root can list every folder")
def test_images_in_an_unreadable_folder_do_not_count_as_removed(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "out")
    before = contents(tmp_path / "out")
    (images / "deep").chmod(0)
    with pytest.raises(UserError, match="deep: cannot be listed"):
        run(params, images, bundle, tmp_path / "out")
    (images / "deep").chmod(0o755)
    assert contents(tmp_path / "out") == before


def test_the_second_of_two_runs_on_one_folder_is_refused(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(params, images, bundle, out, stopping_after(2))
    before = contents(out)
    with exclusive(out / ".lock", "predictions"), pytest.raises(Busy, match="Another process is using") as error:
        run(params, images, bundle, out)
    assert error.value.exit_status == 75
    assert contents(out) == before


def test_a_name_that_is_not_text_is_reported(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        Path(os.fsdecode(bytes(images) + b"/" + name)).write_bytes(encoded(noise(5, 5)))
    refused = [str(problem) for problem in run(params, images, bundle, tmp_path / "out")]
    assert refused[:2] == [
        f"{images}/{name}: has a name with control characters or invalid UTF-8; expected text. Rename it."
        for name in (r"caf\udce9.png", r"two\nlines.png")
    ]
    assert read_table(tmp_path / "out")["image"].tolist() == SOUND


def test_names_can_be_as_long_as_the_file_system_allows(params: Params, bundle: Path, tmp_path: Path) -> None:
    """The name NAME.png may be 255 bytes long; the temporary name NAME.png.partial may not."""
    for letter, length in (("a", 247), ("b", 251), ("c", 252), ("é", 255)):
        write(tmp_path / f"images/{letter * (length // len(letter.encode()))}", encoded(noise(20, 20)))
    for _ in range(2):
        refused = run(params, tmp_path / "images", bundle, tmp_path / "out")
        assert [problem.found for problem in refused] == ["has a name of 252 bytes", "has a name of 254 bytes"]
        assert read_table(tmp_path / "out")["image"].tolist() == ["a" * 247, "b" * 251]
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_an_image_for_which_the_memory_is_not_enough_is_named(params: Params, bundle: Path, tmp_path: Path) -> None:
    """The file is a few bytes that claim 3,000 megapixels. Pillow cannot allocate that much memory."""
    write(tmp_path / "images/huge.png", png_claiming(1_000_000_000, 3))
    write(tmp_path / "images/small.png", encoded(noise(20, 20)))
    large = params.model_copy(update={"prepare": params.prepare.model_copy(update={"max_megapixels": 3000.0})})
    [problem] = run(large, tmp_path / "images", bundle, tmp_path / "out")
    assert str(problem) == f"{tmp_path}/images/huge.png: needs more memory than there is. Cut it into tiles."
    assert read_table(tmp_path / "out")["image"].tolist() == ["small.png"]


def test_a_name_that_pandas_would_read_as_missing_is_kept(params: Params, bundle: Path, tmp_path: Path) -> None:
    write(tmp_path / "images/NA", encoded(noise(20, 20)))
    for _ in range(2):
        run(params, tmp_path / "images", bundle, tmp_path / "out")
    assert read_table(tmp_path / "out")["image"].tolist() == ["NA"]


def test_predictions_of_two_bundles_are_not_mixed(
    params: Params, images: Path, bundle: Path, foreign_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(params, images, bundle, out)
    before = contents(out)
    other = params.model_copy(update={"predict": params.predict.model_copy(update={"window_overlap_px": 0})})
    for settings, model in ((params, foreign_bundle), (other, bundle)):
        with pytest.raises(UserError) as error:
            run(settings, images, model, out)
        assert str(error.value) == (
            f"{out}: contains predictions of a different model, with different params or in a different format. "
            "Give another folder with --out, or remove this one."
        )
    assert contents(out) == before


def test_a_folder_with_other_content_is_not_written_to(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path / "out/precious.txt", "mine")
    with pytest.raises(UserError, match=r"is not empty and contains no predictions. Give another folder with --out"):
        run(params, images, bundle, tmp_path / "out")
    assert contents(tmp_path / "out") == {"precious.txt": b"mine"}
    with pytest.raises(UserError, match="is not a folder"):
        run(params, images, bundle, tmp_path / "out/precious.txt")


def test_predictions_inside_the_folder_of_images_are_refused(params: Params, images: Path, bundle: Path) -> None:
    """The next run would treat the masks as images."""
    with pytest.raises(UserError, match="is in the image folder"):
        run(params, images, bundle, images / "predictions")
    assert not (images / "predictions").exists()
    with pytest.raises(UserError, match="is in the output folder"):
        run(params, images, bundle, images.parent)


def test_a_missing_or_empty_folder_of_images_is_reported(params: Params, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder. Give the folder of images"):
        run(params, tmp_path / "nowhere", bundle, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no files"):
        run(params, tmp_path / "empty", bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_large_image_is_predicted_in_windows(params: Params, bundle: Path, tmp_path: Path) -> None:
    image = noise(150, 200)
    write(tmp_path / "images/large.png", encoded(image))
    predict = params.predict.model_copy(update={"window_px": 64, "window_overlap_px": 16})
    run(params.model_copy(update={"predict": predict}), tmp_path / "images", bundle, tmp_path / "out")
    mask = np.array(Image.open(tmp_path / "out/masks/large.png.png"))
    assert mask.shape == (150, 200)
    assert np.array_equal(mask, predicted(bundle, image, window_px=64))
    assert not np.array_equal(mask, predicted(bundle, image))
    assert json.loads((tmp_path / "out/settings.json").read_text())["window_px"] == 64


def another(bundle: Path, folder: Path) -> Path:
    """Create a network with different weights and different preprocessing."""
    model = Bundle.load(bundle)
    torch.manual_seed(1)
    folder.mkdir()
    replace(
        model, network=PSPNet(model.network.architecture), preprocessing=Preprocessing((0.3,) * 3, (0.2,) * 3)
    ).save(folder)
    return folder


def test_several_bundles_predict_the_likeliest_class_of_their_mean(
    params: Params, bundle: Path, tmp_path: Path
) -> None:
    image = noise(60, 80)
    write(tmp_path / "images/one.png", encoded(image))
    other = another(bundle, tmp_path / "other")
    run_all(params, tmp_path / "images", [bundle, other], tmp_path / "out")
    mask = np.array(Image.open(tmp_path / "out/masks/one.png.png"))
    [(_, first)], [(_, second)] = (predictor(Bundle.load(one)).bands(image[None]) for one in (bundle, other))
    assert np.array_equal(mask, (first + second)[0].argmax(dim=0).numpy())
    assert not np.array_equal(mask, predicted(bundle, image)) and not np.array_equal(mask, predicted(other, image))
    with pytest.raises(UserError, match="contains predictions of a different model"):
        run(params, tmp_path / "images", bundle, tmp_path / "out")


def test_bundles_with_different_classes_are_not_averaged(
    params: Params, images: Path, bundle: Path, foreign_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        run_all(params, images, [bundle, foreign_bundle], tmp_path / "out")
    assert str(error.value) == (
        f"{foreign_bundle}: has the classes class0, class1, class2, class3, class4, class5; "
        f"expected those of {bundle}: sky, road, building, tree, car, person"
    )
    assert not (tmp_path / "out").exists()


def test_the_overlay_of_a_large_image_has_no_seam_between_strips(params: Params, bundle: Path, tmp_path: Path) -> None:
    image = noise(600, 20)
    write(tmp_path / "images/tall.png", encoded(image))
    run(params, tmp_path / "images", bundle, tmp_path / "out")
    mask = Image.open(tmp_path / "out/masks/tall.png.png").convert("RGB")
    overlay = Image.open(tmp_path / "out/overlays/tall.png.png")
    assert np.array_equal(np.array(overlay), np.array(Image.blend(Image.fromarray(image), mask, 0.5)))


def of_classes(bundle: Path, classes: tuple[str, ...], folder: Path) -> Path:
    model = Bundle.load(bundle)
    folder.mkdir()
    replace(model, classes=classes).save(folder)
    return folder


@pytest.mark.parametrize(
    ("layout", "classes", "image", "submitted", "values"),
    [
        (
            "cityscapes",
            ("sky", "road", "building", "traffic light", "car", "bicycle"),
            "test/berlin/berlin_000001_000019_leftImg8bit.png",
            "berlin_000001_000019_pred_labelIds.png",
            [23, 7, 11, 19, 26, 33],
        ),
        (
            "voc",
            ("background", "aeroplane", "sheep", "sofa", "train", "tvmonitor"),
            "2008_000006.jpg",
            "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png",
            [0, 1, 17, 18, 19, 20],
        ),
        (
            "ade20k",
            ("wall", "building", "sky", "floor", "tree", "flag"),
            "ADE_test_00000001.jpg",
            "ADE_test_00000001.png",
            [1, 2, 3, 4, 5, 150],
        ),
    ],
)
def test_a_submission_has_the_names_and_values_of_its_benchmark(
    params: Params, bundle: Path, tmp_path: Path, layout: str, classes: tuple[str, ...], image: str,
    submitted: str, values: list[int],
) -> None:  # fmt: skip
    own = of_classes(bundle, classes, tmp_path / "own")
    write(tmp_path / "images" / image, encoded(noise(60, 80)))
    out = tmp_path / "out"
    run(params, tmp_path / "images", own, out)
    before = contents(out)
    run_all(params, tmp_path / "images", [own], out, layout)
    assert before.items() < contents(out).items()  # nothing is predicted again
    files = contents(out / "submission")
    assert list(files) == [submitted]
    picture = Image.open(out / "submission" / submitted)
    mask = np.array(Image.open(out / f"masks/{image}.png"))
    assert np.array_equal(np.array(picture), np.array(values)[mask])
    if layout == "voc":
        assert picture.convert("RGB").getpixel((0, 0)) == VOC_COLORS[values[mask[0, 0]]]
        assert (picture.getpalette() or [])[: 3 * 21] == [part for color in VOC_COLORS.values() for part in color]
    else:
        assert picture.mode == "L"


VOC_COLORS = dict(enumerate([
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
    (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]))  # fmt: skip


def test_obstacles_to_a_submission_are_reported_before_anything_is_predicted(
    params: Params, bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path / "images/a/berlin_000001_000019_leftImg8bit.png", encoded(noise(20, 30)))
    write(tmp_path / "images/b/berlin_000001_000019_leftImg8bit.png", encoded(noise(20, 30)))
    write(tmp_path / "images/berlin.png", encoded(noise(20, 30)))
    with pytest.raises(UserError) as error:
        run_all(params, tmp_path / "images", [bundle], tmp_path / "out", "cityscapes")
    first, classes, names, twice = str(error.value).splitlines()
    assert first == "3 problems:"
    assert classes.strip() == (
        f"{bundle}: has classes that cityscapes lacks (1): tree; expected names of {first_few(LABEL_IDS)}"
    )
    assert names.strip() == (
        "berlin.png: is not named like an image of cityscapes (files: 1); "
        r"expected names that match (.*)_leftImg8bit\.\w+"
    )
    assert re.search(
        "^  [ab]/berlin_000001_000019_leftImg8bit.png: has the same submitted mask as [ab]/berlin_000001_000019", twice
    )
    assert not (tmp_path / "out").exists()


def test_the_command_takes_several_bundles_and_a_layout(bundle: Path, tmp_path: Path) -> None:
    own = of_classes(bundle, ("wall", "building", "sky", "floor", "tree", "flag"), tmp_path / "own")
    other = another(own, tmp_path / "other")
    write(tmp_path / "images/ADE_test_00000001.jpg", encoded(noise(40, 50)))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = ("predict", "images", "--out", "out", "--bundle", "own", "--bundle", "other")
    done = pspnet(*command, "--layout", "ade20k", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["bundles"] == [digest(own), digest(other)]
    assert [path.name for path in (tmp_path / "out/submission").iterdir()] == ["ADE_test_00000001.png"]
    refused = pspnet(*command, "--layout", "kitti", cwd=tmp_path)
    assert (refused.returncode, "'kitti' is not one of 'cityscapes', 'voc', 'ade20k'" in refused.stderr) == (2, True)


def test_the_command_offers_every_submission_layout() -> None:
    assert tuple(submission.BENCHMARKS) == get_args(prediction.Benchmark)
