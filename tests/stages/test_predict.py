import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pspnet.config.params import Params
from pspnet.errors import Interrupted, Problem, UserError
from pspnet.model.bundle import Bundle
from pspnet.prediction import Predictor
from pspnet.stages import predict as stage
from tests.dataset.rawdata import Pixels, encoded, noise, write
from tests.training.conftest import quiet

Tick = Callable[[int, int, str], None]


@pytest.fixture
def images(prepared: Path, tmp_path: Path) -> Path:
    """Pictures of every kind that people have, and two files that are none."""
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
    return stage.run(params.prepare, params.predict, params.runtime, images=images, bundle=bundle, out=out, tick=tick)


def stopping_after(ticks: int) -> Tick:
    def tick(done: int, total: int, note: str) -> None:
        if done == ticks:
            raise Interrupted(130)

    return tick


def predicted(bundle: Path, image: Pixels, window_px: int = 1024) -> NDArray[np.uint8]:
    model = Bundle.load(bundle)
    [prediction] = Predictor(
        model.network, model.preprocessing, window_px, window_px // 4, torch.device("cpu"), "fp32"
    ).predict(image[None])
    return prediction.mask


def read_table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv", keep_default_na=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SOUND = ["a street.png", "deep/er/turned.jpg", "gray.png", "gray16.png", "straße.png", "transparent.png"]


def test_every_sound_image_becomes_a_mask_an_overlay_and_a_row(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen: list[tuple[int, int, str]] = []
    run(params, images, bundle, out, lambda *tick: seen.append(tick))
    expected = {f"{kind}/{name}.png" for kind in ("masks", "overlays") for name in SOUND}
    assert set(contents(out)) == expected | {"predictions.csv", "settings.json"}
    assert read_table(out)["image"].tolist() == SOUND
    assert seen == [(done, 8, "images") for done in range(1, 9)]


def test_masks_hold_class_indices_in_the_bundles_colours(
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


def test_a_row_tells_size_confidence_and_share_of_each_class(
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


def test_a_file_that_is_no_image_is_named_and_the_rest_is_done(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    refused = [str(problem) for problem in run(params, images, bundle, tmp_path / "out")]
    formats = "expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF. Export it again or remove it: it is another kind of "
    assert refused == [
        f"{images}/no image.png: cannot be recognised as an image; {formats}file, or its beginning is damaged.",
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
def test_a_run_that_is_stopped_and_started_again_ends_the_same_and_predicts_nothing_twice(
    params: Params, images: Path, bundle: Path, tmp_path: Path, ticks: int
) -> None:
    run(params, images, bundle, tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        run(params, images, bundle, out, stopping_after(ticks))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 2 <= len(written) <= 2 * len(SOUND)
    run(params, images, bundle, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_line_that_a_crash_cut_short_is_written_again(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    run(params, images, bundle, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    table = whole["predictions.csv"]
    in_eszett = table.index("ß".encode()) + 1  # half a character
    for cut in (len(table) - 1, len(table) - 20, in_eszett, 10, 0):
        (tmp_path / "whole/predictions.csv").write_bytes(table[:cut])
        run(params, images, bundle, tmp_path / "whole")
        assert contents(tmp_path / "whole") == whole


def test_a_second_run_has_nothing_to_do(params: Params, images: Path, bundle: Path, tmp_path: Path) -> None:
    run(params, images, bundle, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    before = contents(tmp_path / "out")
    run(params, images, bundle, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_changed_image_is_predicted_again_and_a_new_one_is_added(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(params, images, bundle, out)
    write(images / "gray.png", encoded(noise(30, 20)))
    write(images / "b.png", encoded(noise(20, 30)))
    run(params, images, bundle, out)
    assert sorted(read_table(out)["image"]) == sorted([*SOUND, "b.png"])
    assert read_table(out).set_index("image").loc["gray.png", ["height", "width"]].tolist() == [30, 20]
    assert np.array(Image.open(out / "masks/gray.png.png")).shape == (30, 20)


def test_a_name_that_pandas_reads_as_nothing_is_a_name(params: Params, bundle: Path, tmp_path: Path) -> None:
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
            f"{out}: holds predictions of another model or other params. "
            "Give another folder with --out, or remove this one."
        )
    assert contents(out) == before


def test_a_folder_of_other_things_is_not_written_into(
    params: Params, images: Path, bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path / "out/precious.txt", "mine")
    with pytest.raises(UserError, match=r"is not empty and holds no predictions. Give another folder with --out"):
        run(params, images, bundle, tmp_path / "out")
    assert contents(tmp_path / "out") == {"precious.txt": b"mine"}


def test_predictions_beside_the_images_they_are_of_are_refused(params: Params, images: Path, bundle: Path) -> None:
    """The next run would take the masks for images."""
    with pytest.raises(UserError, match="lies in the folder of the images"):
        run(params, images, bundle, images / "predictions")
    assert not (images / "predictions").exists()


def test_a_missing_or_empty_folder_of_images_is_told(params: Params, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder. Name the folder of the images"):
        run(params, tmp_path / "nowhere", bundle, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file"):
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
