"""One request, without MLflow or HTTP around it."""

import io
import threading
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pspnet.errors import UserError
from pspnet.model.bundle import Bundle
from pspnet.registry.packaging import settings
from pspnet.serving.service import Abandoned, Service
from tests.parameters import demo_params
from tests.predicting import predictor
from tests.raw.rawdata import Pixels, encoded, noise
from tests.serving.conftest import CLASSES
from tests.serving.processes import png_of_zeros, predicted, text

FORMATS = "JPEG, PNG, WEBP, TIFF, BMP, GIF"
NOT_BASE64 = "expected base64 of an image file. Encode the bytes of the file, not its name or address."


@pytest.fixture(scope="session")
def service(bundle: Path) -> Service:
    return Service(bundle, settings(demo_params(serve__max_images=3, serve__max_image_mb=1.0, serve__max_megapixels=1)))


def table(*images: Any) -> pd.DataFrame:
    return pd.DataFrame({"image": pd.Series([text(image) for image in images], dtype=object)})


def refusal(service: Service, request: pd.DataFrame) -> str:
    with pytest.raises(UserError) as error:
        service.answer(request)
    return str(error.value)


def shown(mask: str) -> Image.Image:
    return Image.open(io.BytesIO(b64decode(mask)))


def test_a_version_predicts_with_the_scales_and_windows_of_its_measurement(bundle: Path) -> None:
    image = noise(50, 70)
    whole = demo_params(predict__scales=[0.5, 1.0], predict__flip=True)
    tiled = demo_params(predict__window_px=32, predict__window_overlap_px=12)
    model = Bundle.load(bundle)
    expected = [
        predictor(model, scales=[0.5, 1.0], flip=True).predict(image[None])[0].mask,
        predictor(model, window_px=32, window_overlap_px=12).predict(image[None])[0].mask,
    ]
    answered = [Service(bundle, settings(params)).answer(table(encoded(image))) for params in (whole, tiled)]
    masks = [np.array(shown(one.iloc[0]["mask"])) for one in answered]
    assert all(map(np.array_equal, masks, expected))
    assert not np.array_equal(masks[0], masks[1])


def test_a_mask_is_an_8_bit_palette_png_of_class_indices_in_the_bundles_colors(service: Service, bundle: Path) -> None:
    image = noise(30, 50)
    row = service.answer(table(encoded(image))).iloc[0]
    mask = shown(row["mask"])
    assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (50, 30))
    assert b64decode(row["mask"])[24:26] == b"\x08\x03"  # 8 bits per pixel, with a palette
    assert np.array_equal(np.array(mask), predicted(bundle, image))
    colors = np.array(Bundle.load(bundle).colors, np.uint8)
    assert np.array_equal(np.array(mask.convert("RGB")), colors[np.array(mask)])


def test_a_row_has_size_confidence_and_the_share_of_each_class(service: Service) -> None:
    rows = service.answer(table(encoded(noise(30, 50)), encoded(noise(20, 10, seed=1)))).to_dict("records")
    assert [(row["height"], row["width"]) for row in rows] == [(30, 50), (20, 10)]
    for row in rows:
        assert list(row) == ["mask", "height", "width", "confidence", "shares"]
        mask = np.array(shown(row["mask"]))
        assert row["shares"] == {name: (mask == number).mean() for number, name in enumerate(CLASSES)}
        assert 1 / len(CLASSES) < row["confidence"] < 1


def wrapped(text: str) -> str:
    return "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n"


@pytest.mark.parametrize(
    "wrap",
    [wrapped, lambda t: f"data:image/png;base64,{t}", lambda t: f"  data:image/png;charset=x;base64,\n{wrapped(t)}"],
    ids=["line breaks", "data URL", "both"],
)
def test_base64_can_have_line_breaks_or_a_data_url(service: Service, wrap: Callable[[str], str]) -> None:
    sent = text(encoded(noise(30, 50)))
    assert service.answer(table(wrap(sent))).equals(service.answer(table(sent)))


def test_images_are_read_like_training_images(service: Service, bundle: Path) -> None:
    image = noise(30, 50)
    turned = encoded(image, "JPEG", orientation=6, quality=95)
    upright = np.ascontiguousarray(np.rot90(np.array(Image.open(io.BytesIO(turned))), -1))
    gray: Pixels = image[..., 0]
    sent = [turned, encoded(gray.astype(np.uint16) * 257), encoded(image, "TIFF")]
    masks = [np.array(shown(mask)) for mask in service.answer(table(*sent))["mask"]]
    for mask, expected in zip(masks, [upright, np.dstack([gray] * 3), image], strict=True):
        assert np.array_equal(mask, predicted(bundle, expected))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is null; expected base64 of an image file"),
        (float("nan"), "is null; expected base64 of an image file"),
        (pd.NA, "is null; expected base64 of an image file"),
        (3, "is int, not text; expected base64 of an image file"),
        (["a"], "is list, not text; expected base64 of an image file"),
        ("", "is empty (0 bytes); expected an image"),
        (" \n", "is empty (0 bytes); expected an image"),
        ("data:image/png;base64,", "is empty (0 bytes); expected an image"),
        ("holidays/beach.jpg", f"is not base64 (it starts with 'holidays/beach.jpg'); {NOT_BASE64}"),
        ("https://example.org/beach.jpg", f"is not base64 (it starts with 'https://example.org/'); {NOT_BASE64}"),
        ("Straße", f"is not base64 (it starts with 'Straße'); {NOT_BASE64}"),
        ("AAA", f"is not base64 (it starts with 'AAA'); {NOT_BASE64}"),
        (
            b"These are words.",
            (f"cannot be recognized as an image; expected one of {FORMATS}. "
            "Export it again or remove it: it is another kind of file, or its beginning is damaged."),
        ),
        (
            encoded(noise(30, 50))[:900],
            "cannot be decoded (image file is truncated); expected a complete image",
        ),
        (
            "A" * 1_400_000,
            ("is 1.1 MB; expected at most 1.0 (serve.max_image_mb). "
            "Send a smaller file or raise serve.max_image_mb."),
        ),
        (
            png_of_zeros(50_000, 50_000, data=b"\0"),
            ("has 2,500.0 megapixels; expected at most 1.0 (serve.max_megapixels). "
            "Cut it into tiles or raise serve.max_megapixels."),
        ),
        (
            png_of_zeros(4_000, 4_000),
            ("has 16.0 megapixels; expected at most 1.0 (serve.max_megapixels). "
            "Cut it into tiles or raise serve.max_megapixels."),
        ),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, bytes) else "bytes",
)  # fmt: skip
def test_a_value_that_is_not_an_image_is_refused_and_the_fix_is_named(
    service: Service, value: Any, message: str
) -> None:
    assert refusal(service, table(value)) == f"image 1: {message}"


def test_every_bad_image_of_a_request_is_named_and_none_is_predicted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_row", lambda *_: pytest.fail("predicted"))
    assert refusal(service, table("", encoded(noise(8, 8)), None)) == (
        "2 problems:\n"
        "  image 1: is empty (0 bytes); expected an image\n"
        "  image 3: is null; expected base64 of an image file"
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            table(*[encoded(noise(8, 8))] * 4),
            "contains 4 images; expected at most 3 (serve.max_images). Send them in several requests.",
        ),
        (table(), "contains no image; expected from 1 to 3"),
        (
            pd.DataFrame({"picture": ["a"]}),
            "has the columns 'picture'; expected one column, 'image': base64 of an image file in each row",
        ),
        (
            pd.DataFrame({"image": ["a"], "id": [1]}),
            "has the columns 'image', 'id'; expected one column, 'image': base64 of an image file in each row",
        ),
        (pd.DataFrame(), "has no column; expected one column, 'image': base64 of an image file in each row"),
    ],
    ids=["too many", "none", "wrong column", "two columns", "no column"],
)
def test_a_request_that_is_not_one_column_of_images_is_refused(
    service: Service, request_: pd.DataFrame, message: str
) -> None:
    assert refusal(service, request_) == f"request: {message}"


def test_an_image_at_the_limit_is_answered(service: Service) -> None:
    row = service.answer(table(png_of_zeros(1000, 1000))).iloc[0]
    assert (row["height"], row["width"]) == (1000, 1000)


def test_several_threads_at_once_get_the_same_answers_as_one(service: Service) -> None:
    images = [encoded(noise(20 + 5 * number, 30, seed=number)) for number in range(4)]
    expected = [service.answer(table(image)) for image in images]
    wrong: list[int] = []

    def ask(number: int) -> None:
        wrong.extend(number for _ in range(3) if not service.answer(table(images[number])).equals(expected[number]))

    threads = [threading.Thread(target=ask, args=(number % 4,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_invalid_settings_are_refused_when_the_model_is_loaded(bundle: Path) -> None:
    with pytest.raises(UserError) as error:
        Service(bundle, {**settings(demo_params()), "threads": 0})
    assert str(error.value) == "model_config: threads is 0; expected greater than or equal to 1"
    with pytest.raises(UserError, match="model_config: 'max_images' is missing"):
        Service(bundle, {name: value for name, value in settings(demo_params()).items() if name != "max_images"})


@pytest.mark.parametrize(("questions", "windows"), [(1, 0), (2, 0), (3, 0), (4, 0), (6, 2)])
def test_an_abandoned_request_stops_between_images_and_windows(bundle: Path, questions: int, windows: int) -> None:
    service = Service(bundle, settings(demo_params(predict__window_px=32, predict__window_overlap_px=12)))
    asked: list[int] = []
    seen: list[str] = []

    def given_up() -> bool:
        asked.append(len(seen))
        return len(asked) == questions

    with (
        service._network.register_forward_hook(lambda *_: seen.append("window")),
        pytest.raises(Abandoned),
    ):
        service.answer(table(encoded(noise(64, 96)), encoded(noise(64, 96))), given_up)
    assert (len(asked), len(seen)) == (questions, windows)
