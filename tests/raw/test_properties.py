"""Whatever its bytes, size, mode and values, an image is used correctly or left out with a reason."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pspnet.dataset.store.pixels import decode_image, decode_mask, encode_mask
from pspnet.raw.classes import IGNORE, Classes
from pspnet.raw.files import RawFiles
from pspnet.raw.images import TURNS
from pspnet.raw.masks import COLOR, Colors, Levels, Numbers, RawMask
from pspnet.raw.problems import KEPT
from pspnet.raw.sample import RawSample
from pspnet.raw.validation import CheckedSample, check
from tests.raw.rawdata import encoded, noise, rules, write

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0),) * 3, {0: 0, 1: 1, 7: 2, COLOR: 0, COLOR | 0xFF0000: 1}, (255,))
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
POLICIES = st.fixed_dictionaries(
    {
        "mask_size": st.sampled_from(["quarantine", "fix"]),
        "mask_values": st.sampled_from(["quarantine", "fix", "error"]),
        "blurred_mask": st.sampled_from(["quarantine", "fix"]),
        "empty_mask": st.sampled_from(["quarantine", "fix", "allow"]),
        "wrong_suffix": st.sampled_from(["quarantine", "allow"]),
    }
)
MANY = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def checked_sample(raw: Path, image: bytes, mask: bytes | None, kind: Any, policies: dict[str, str]) -> CheckedSample:
    write(raw / "i.png", image)
    if mask is not None:
        write(raw / "m.png", mask)
    own: RawMask | None = None if mask is None else kind("m.png", 128) if kind is Levels else kind("m.png")
    sample = RawSample("i", "i.png", own, "g", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # warnings must not reach the user
        checked = check(sample, files=RawFiles(raw), rules=rules(CLASSES, 10**6, **policies))
    is_sound(checked)
    return checked


def is_sound(checked: CheckedSample) -> None:
    left_out = [one for one in checked.verdicts if one.outcome not in KEPT]
    assert (checked.image is None) == bool(left_out)
    assert all(one.problem.found and one.problem.expected for one in checked.verdicts)
    if checked.image is None:
        return
    pixels = decode_image(checked.image)
    assert pixels.shape == (checked.height, checked.width, 3)
    sampled, *sums = checked.channel_sums
    least, most = pixels.min((0, 1)).tolist(), pixels.max((0, 1)).tolist()
    assert sampled == -(-checked.height // 4) * -(-checked.width // 4)
    assert all(low * sampled <= own <= high * sampled for low, own, high in zip(least, sums[:3], most, strict=True))
    if checked.mask is not None:
        mask = decode_mask(checked.mask)
        assert mask.shape == pixels.shape[:2]
        values, counts = np.unique(mask, return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == checked.class_counts
        assert set(values.tolist()) <= {0, 1, 2, IGNORE}


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["change", "cut", "insert", "remove", "zero"])):
            case "change":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "remove":
                del data[at : at + draw(st.integers(1, 64))]
            case "zero":
                data[at : at + 8] = bytes(8)
    return bytes(data)


IMAGES = [encoded(Image.fromarray(noise(9, 13)), kind) for kind in FORMATS] + [
    encoded(Image.fromarray(noise(9, 13)), "JPEG", orientation=6)
]
MASKS = [
    encoded(Image.fromarray(np.resize(np.array([0, 1, 7, 255], np.uint8), (9, 13))), kind)
    for kind in ("PNG", "TIFF", "BMP", "GIF")
]


@MANY
@given(image=mutated(IMAGES), policies=POLICIES)
def test_an_image_with_random_changes_is_used_or_refused(
    tmp_path: Path, image: bytes, policies: dict[str, str]
) -> None:
    checked_sample(tmp_path, image, None, Numbers, policies)


@MANY
@given(mask=mutated(MASKS), kind=st.sampled_from([Numbers, Colors, Levels]), policies=POLICIES)
def test_a_mask_with_random_changes_is_used_or_refused(
    tmp_path: Path, mask: bytes, kind: Any, policies: dict[str, str]
) -> None:
    checked_sample(tmp_path, encoded(noise(9, 13)), mask, kind, policies)


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr", "PA", "RGBX"]
SAVED = {"PNG": {"1", "L", "P", "RGB", "RGBA", "LA", "I;16"}, "TIFF": {*MODES} - {"PA"}, "GIF": {"L", "P", "1"},
         "BMP": {"1", "L", "P", "RGB"}, "JPEG": {"L", "RGB", "CMYK"}, "WEBP": {"RGB", "RGBA"}}  # fmt: skip


def image_of(mode: str, height: int, width: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    if mode in ("I;16", "I", "F"):
        wide = values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 257
        return Image.fromarray(wide)
    return Image.fromarray(values).convert("RGBA" if mode in ("PA", "LA") else "RGB").convert(mode)


def saved(mode: str, kind: str, height: int, width: int, seed: int, orientation: int) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image_of(mode, height, width, seed).save(file, kind, **options)
    return file.getvalue()


@MANY
@given(
    kind_and_mode=st.sampled_from([(kind, mode) for kind, modes in SAVED.items() for mode in sorted(modes)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)), orientation=st.integers(0, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_images_of_any_mode_size_and_orientation_are_sound(
    tmp_path: Path, kind_and_mode: tuple[str, str], size: tuple[int, int], orientation: int, seed: int
) -> None:
    kind, mode = kind_and_mode
    checked = checked_sample(tmp_path, saved(mode, kind, *size, seed, orientation), None, Numbers, {})
    if mode in ("L", "RGB", "1", "CMYK", "P", "RGBA", "LA"):
        assert checked.image is not None, checked.verdicts
        turned = TURNS.get(orientation, np.asarray) if kind in ("JPEG", "PNG", "TIFF", "WEBP") else np.asarray
        assert (checked.height, checked.width) == turned(np.zeros(size)).shape


@MANY
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=30),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    image_size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    same=st.booleans(), bits=st.sampled_from([8, 16]), policies=POLICIES,
)  # fmt: skip
def test_masks_of_any_size_and_values_are_sound(
    tmp_path: Path, values: list[int], size: tuple[int, int], image_size: tuple[int, int], same: bool, bits: int,
    policies: dict[str, str],
) -> None:  # fmt: skip
    mask = np.resize(np.array(values, np.uint8 if bits == 8 else np.uint16), size)
    checked = checked_sample(
        tmp_path, encoded(noise(*(size if same else image_size))), encoded(mask), Numbers, policies
    )
    known = set(values) <= {0, 1, 7, 255}
    if same and known and set(mask.ravel().tolist()) != {255}:
        assert checked.mask is not None
        expected = np.select([mask == 0, mask == 1, mask == 7], [0, 1, 2], IGNORE)
        assert np.array_equal(decode_mask(checked.mask), expected)


@MANY
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)), seed=st.integers(0, 10**6), most=st.integers(0, 255))
def test_an_encoded_mask_decodes_the_same_in_pillow(size: tuple[int, int], seed: int, most: int) -> None:
    mask = np.random.default_rng(seed).integers(0, most + 1, size, np.uint8)
    data = encode_mask(mask)
    assert np.array_equal(decode_mask(data), mask)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), mask)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_truncated_anywhere_is_reported(tmp_path: Path, kind: str) -> None:
    data = encoded(Image.fromarray(noise(9, 13)), kind)
    whole = checked_sample(tmp_path, data, None, Numbers, {})
    assert whole.image is not None
    for end in range(0, len(data) // 2, max(1, len(data) // 60)):
        checked = checked_sample(tmp_path, data[:end], None, Numbers, {})
        assert checked.image is None
        assert checked.verdicts[-1].problem.kind == "unreadable"
