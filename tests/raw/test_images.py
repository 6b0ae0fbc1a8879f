import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from pspnet.dataset.store.pixels import decode_image, decode_mask, encode_mask
from pspnet.raw.images import TURNS, Refused, limited_pillow, read_image
from pspnet.raw.masks import colors_in, levels_in, numbers_in
from tests.raw.rawdata import LIMIT, ORIENTATION, Pixels, encoded, noise, shared_data

CUT_SHORT = b"Exif\0\0II*\0\x08\0\0\0\x01\0"  # declares one entry and then ends
GRAY = np.array([[0, 100, 255], [7, 8, 9]], np.uint8)
UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def decoded(data: bytes) -> Pixels:
    return decode_image(read_image(data, LIMIT).data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("pixels", [noise(5, 7), noise(5, 7)[..., 0]], ids=["RGB", "gray"])
def test_bytes_of_a_sound_image_are_kept(kind: str, pixels: Pixels) -> None:
    data = encoded(pixels, kind)
    stored = read_image(data, LIMIT)
    assert stored.data == data
    assert (stored.height, stored.width) == (5, 7)


def test_a_gray_image_decodes_to_three_equal_channels() -> None:
    assert np.array_equal(decoded(encoded(GRAY)), np.stack([GRAY] * 3, axis=-1))


def test_a_decoded_image_is_writable() -> None:
    decoded(encoded(GRAY))[0, 0] = 1


def soft(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(5, 5)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8), (16, 17), (33, 31), (100, 129)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "gray", "RGB", "restarts"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_decodes_to_the_pixels_that_pillow_sees(
    size: tuple[int, int], subsampling: str, progressive: bool
) -> None:
    """Every chroma resolution, no chroma, RGB stored directly, and sizes that are not multiples of a block."""
    others: dict[str, dict[str, Any]] = {
        "gray": {}, "RGB": {"keep_rgb": True}, "restarts": {"restart_marker_blocks": 1}
    }  # fmt: skip
    options = others.get(subsampling, {"subsampling": subsampling})
    for picture in (soft(*size), Image.fromarray(noise(*size))):
        stored = picture.convert("L") if subsampling == "gray" else picture
        for quality in (30, 95):
            data = encoded(stored, "JPEG", quality=quality, progressive=progressive, **options)
            assert read_image(data, LIMIT).data == data
            assert np.array_equal(decode_image(data), as_pillow_sees(data))


@pytest.mark.parametrize(
    ("chunk", "content"),
    [
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"sRGB", b"\0"),
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        (b"bKGD", b"\0\1\0\2\0\3"),
    ],
)
def test_color_chunks_in_a_png_change_no_pixel(chunk: bytes, content: bytes) -> None:
    said = PngImagePlugin.PngInfo()
    said.add(chunk, content)
    data = encoded(UPRIGHT, pnginfo=said)
    assert chunk in data and read_image(data, LIMIT).data == data
    assert np.array_equal(decode_image(data), UPRIGHT)


def test_real_images_decode_to_the_pixels_that_pillow_sees() -> None:
    kinds = set()
    for path in sorted(shared_data("awkward").rglob("*")) + sorted(shared_data("layouts").rglob("*.jp*g")):
        with contextlib.suppress(Refused, IsADirectoryError):
            data = read_image(path.read_bytes(), 10_000_000).data
            assert np.array_equal(decode_image(data), as_pillow_sees(data)), path
            kinds.add(data[:4])
    assert len(kinds) > 2  # a PNG, and JPEGs with and without EXIF


def as_pillow_sees(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_picture_too_wide_for_opencv_is_decoded_by_pillow() -> None:
    row = noise(1, 1_100_000)[..., 0]
    assert cv2.imdecode(np.frombuffer(encoded(row), np.uint8), cv2.IMREAD_COLOR) is None
    in_a_shard = memoryview(pa.scalar(encoded(row), pa.large_binary()).as_buffer())
    for data in (encoded(row), in_a_shard):
        assert np.array_equal(decode_image(data)[..., 1], row)
    assert np.array_equal(decode_mask(encode_mask(row)), row)


@pytest.mark.e2e
def test_a_picture_with_too_many_pixels_for_opencv_is_decoded_by_pillow(tmp_path: Path) -> None:
    """OpenCV's limit is a billion pixels. Here, OpenCV's own environment variable sets the limit to a hundred."""
    (tmp_path / "image.jpg").write_bytes(encoded(soft(30, 40), "JPEG"))
    code = (
        "import sys, cv2, numpy, pathlib; from pspnet.dataset.store.pixels import decode_image\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "try: cv2.imdecode(numpy.frombuffer(data, numpy.uint8), 1)\n"
        "except cv2.error: print(decode_image(data).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "image.jpg")],
        env=os.environ | {"OPENCV_IO_MAX_IMAGE_PIXELS": "100"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "(30, 40, 3)\n"


# These expressions are what the EXIF standard says about the stored row r and column c, for an upright image of height
# h and width w.
STORED_PIXEL = {
    1: lambda r, c, h, w: (r, c),
    2: lambda r, c, h, w: (r, w - 1 - c),
    3: lambda r, c, h, w: (h - 1 - r, w - 1 - c),
    4: lambda r, c, h, w: (h - 1 - r, c),
    5: lambda r, c, h, w: (c, r),
    6: lambda r, c, h, w: (c, w - 1 - r),
    7: lambda r, c, h, w: (h - 1 - c, w - 1 - r),
    8: lambda r, c, h, w: (h - 1 - c, r),
}


def as_stored(upright: Pixels, orientation: int) -> Pixels:
    height, width = upright.shape[:2]
    rows, columns = (width, height) if orientation >= 5 else (height, width)
    places = [[STORED_PIXEL[orientation](r, c, height, width) for c in range(columns)] for r in range(rows)]
    return np.array([[upright[place] for place in row] for row in places])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_rotated_by_exif_becomes_upright_pixel_by_pixel(orientation: int) -> None:
    stored = read_image(encoded(as_stored(UPRIGHT, orientation), orientation=orientation), LIMIT)
    assert np.array_equal(decode_image(stored.data), UPRIGHT)
    assert (stored.height, stored.width, stored.orientation) == (2, 3, orientation)


def turned_by(kind: str, where: str) -> bytes:
    """Return UPRIGHT as stored under orientation 6, with the orientation in one of the places where programs look for
    it.
    """
    stored, exif, chunks = as_stored(UPRIGHT, 6), Image.Exif(), PngImagePlugin.PngInfo()
    exif[ORIENTATION] = 6
    xmp = '<rdf:Description tiff:Orientation="6"/>'
    if where == "xmp" and kind != "PNG":
        return encoded(stored, kind, xmp=xmp.encode(), quality=100)
    if where == "xmp":
        chunks.add_itxt("XML:com.adobe.xmp", xmp)
    if where == "text":
        chunks.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    return encoded(stored, kind, pnginfo=chunks) if chunks.chunks else encoded(stored, kind, exif=exif, quality=100)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("PNG", "exif"),
        ("PNG", "xmp"),
        ("PNG", "text"),
        ("JPEG", "exif"),
        ("JPEG", "xmp"),
        ("WEBP", "exif"),
        ("WEBP", "xmp"),
    ],
)
def test_an_orientation_is_found_wherever_a_file_stores_it(kind: str, where: str) -> None:
    stored = read_image(turned_by(kind, where), LIMIT)
    assert (stored.orientation, stored.height, stored.width) == (6, 2, 3)


@pytest.mark.parametrize("orientation", sorted(TURNS))
def test_a_mask_is_rotated_like_its_image(orientation: int) -> None:
    assert np.array_equal(TURNS[orientation](as_stored(GRAY, orientation)), GRAY)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_an_invalid_orientation_rotates_nothing(orientation: int) -> None:
    data = encoded(UPRIGHT, orientation=orientation)
    assert read_image(data, LIMIT).data == data


def test_a_palette_image_becomes_rgb() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert decoded(encoded(image)).tolist() == expected


def test_an_image_with_alpha_keeps_its_colors() -> None:
    rgba = np.array([[[1, 2, 3, 0], [4, 5, 6, 255]]], np.uint8)
    assert decoded(encoded(rgba)).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_normalizing_drops_a_transparent_color() -> None:
    stored = read_image(encoded(UPRIGHT, transparency=(0, 1, 2)), LIMIT)
    assert b"tRNS" not in stored.data
    assert np.array_equal(decode_image(stored.data), UPRIGHT)


def test_the_upper_eight_of_sixteen_bits_are_kept() -> None:
    assert decoded(encoded(np.array([[0, 255, 256, 65535]], np.uint16)))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_twelve_bits_in_sixteen_are_refused_rather_than_turned_black() -> None:
    with pytest.raises(Refused, match="no value above 4,095"):
        read_image(encoded(np.array([[0, 4095]], np.uint16)), LIMIT)


def test_a_one_bit_image_becomes_black_and_white() -> None:
    assert decoded(encoded(Image.fromarray(np.array([[False, True]]))))[0, :, 0].tolist() == [0, 255]


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("RGB", (16, 16), (250, 20, 30)).convert("CMYK")
    stored = read_image(encoded(red, "JPEG", quality=95), LIMIT)
    assert stored.data.startswith(b"\x89PNG")
    assert np.abs(decode_image(stored.data).astype(int) - [250, 20, 30]).max() <= 8


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "WEBP"])
def test_other_formats_become_png_with_the_same_pixels(kind: str) -> None:
    data = encoded(np.stack([GRAY] * 3, axis=-1), kind, **({"lossless": True} if kind == "WEBP" else {}))
    stored = read_image(data, LIMIT)
    assert stored.data.startswith(b"\x89PNG")
    assert decode_image(stored.data)[..., 0].tolist() == GRAY.tolist()


def test_an_image_that_makes_pillow_warn_becomes_one_that_does_not() -> None:
    data = encoded(noise(8, 8), "JPEG", exif=CUT_SHORT)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        pixels = np.asarray(Image.open(io.BytesIO(data)))
    stored = read_image(data, LIMIT)
    assert stored.data.startswith(b"\x89PNG")
    assert np.array_equal(decode_image(stored.data), pixels)


def test_a_normalized_image_carries_no_color_profile() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = read_image(encoded(UPRIGHT, orientation=3, icc_profile=profile), LIMIT)
    assert b"iCCP" not in stored.data


def test_the_same_image_is_normalized_to_the_same_bytes() -> None:
    data = encoded(UPRIGHT, "BMP")
    assert read_image(data, LIMIT).data == read_image(data, LIMIT).data


@pytest.mark.parametrize(("height", "width"), [(1, 2), (4, 4), (40, 64), (37, 90)])
def test_channel_sums_cover_every_fourth_pixel_in_both_directions(height: int, width: int) -> None:
    image = noise(height, width)
    rows, columns = (((np.arange(-(-n // 4)) + 0.5) * n / -(-n // 4)).astype(int) for n in (height, width))
    sampled = image[rows][:, columns].reshape(-1, 3).astype(int)
    pixels, *sums = read_image(encoded(image), LIMIT).channel_sums
    assert pixels == len(sampled)
    assert sums == [*sampled.sum(0), *(sampled**2).sum(0)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = encoded(noise(40, 40), kind)
    with pytest.raises(Refused, match="cannot be decoded"):
        read_image(data[: len(data) // 2], LIMIT)


def test_an_animation_is_refused() -> None:
    frames = [Image.fromarray(noise(4, 4, seed)) for seed in range(3)]
    with pytest.raises(Refused, match="contains several pictures"):
        read_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMIT)


def tiff_of(directories: int, last_leads_to: int) -> bytes:
    """Return a TIFF of single-pixel gray pictures that all share the same byte."""
    entries = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1))
    size, first = 2 + 12 * len(entries) + 4, 10
    parts = [struct.pack("<2sHI2x", b"II", 42, first)]
    for number in range(1, directories + 1):
        leads_to = first + number * size if number < directories else last_leads_to
        body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        parts.append(struct.pack("<H", len(entries)) + body + struct.pack("<I", leads_to))
    return b"".join(parts)


def test_a_tiff_with_one_picture_is_read() -> None:
    assert decoded(tiff_of(1, 0)).tolist() == [[[0, 0, 0]]]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("directories", [2, 60_000])
def test_the_pictures_in_a_tiff_are_not_counted(directories: int) -> None:
    """Counting the pictures takes time quadratic in the number of pictures, so no directory after
    the second is read.
    """
    for last_leads_to in (0, 2**31):
        with pytest.raises(Refused, match="contains several pictures"):
            read_image(tiff_of(directories, last_leads_to), LIMIT)


def repeated_scans(count: int) -> bytes:
    data = encoded(noise(16, 16), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def test_a_jpeg_with_thousands_of_scans_is_refused() -> None:
    assert decoded(repeated_scans(5)).shape == (16, 16, 3)
    with pytest.raises(Refused, match=r"is a JPEG with 50,0\d\d scans"):
        read_image(repeated_scans(50_000), LIMIT)


def test_a_video_appended_to_a_jpeg_is_not_a_scan() -> None:
    """Phones append such videos. For a decoder, the file ends with the picture."""
    assert decoded(encoded(noise(16, 16), "JPEG") + b"\xff\xda" * 1000).shape == (16, 16, 3)


def test_the_reason_for_a_refusal_is_the_same_every_time() -> None:
    reasons = set()
    for _ in range(2):
        with pytest.raises(Refused) as refusal:
            read_image(b"no image at all", LIMIT)
        reasons.add(refusal.value.found)
    assert reasons == {"cannot be recognized as an image"}


def test_the_pixel_limit_is_exact() -> None:
    data = encoded(noise(10, 10))
    assert read_image(data, 100).height == 10
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(Refused, match=r"has 0\.0 megapixels"):
        read_image(data, 99)
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_image_above_pillows_limit_is_read_if_it_is_below_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(noise(10, 10))
    assert decode_image(read_image(data, 100).data).shape == (10, 10, 3)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_each_image_in_one_limited_block_gets_only_its_own_warnings() -> None:
    warns, plain = encoded(noise(4, 4), "JPEG", exif=CUT_SHORT), encoded(noise(4, 4))
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with limited_pillow(LIMIT):
        assert read_image(warns, LIMIT).data != warns
        assert read_image(plain, LIMIT).data == plain
        with pytest.raises(Refused, match=r"has 0\.0 megapixels"):
            read_image(plain, 15)
        assert read_image(plain, LIMIT).data == plain
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


def test_threads_restore_the_warning_filters_and_the_limit() -> None:
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    images = [encoded(noise(side, side), "BMP") for side in (200, 300)]
    for _ in range(15):  # the second thread starts before the first one ends, and ends after it
        threads = [threading.Thread(target=read_image, args=[data, LIMIT]) for data in images]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


def in_another_thread(data: bytes, max_pixels: int) -> Any:
    """Read the image in another thread, which must not wait."""
    outcomes: list[bytes | str] = []

    def read() -> None:
        try:
            outcomes.append(read_image(data, max_pixels).data)
        except Refused as refused:
            outcomes.append(refused.found)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(30)
    return outcomes[0] if outcomes else "waits"


def test_decoding_an_image_does_not_block_other_threads() -> None:
    data = encoded(noise(4, 4))
    with limited_pillow(LIMIT):
        assert in_another_thread(data, LIMIT) == data


def test_each_thread_has_its_own_warnings_and_limit() -> None:
    warns, plain = encoded(noise(4, 4), "JPEG", exif=CUT_SHORT), encoded(noise(4, 4))
    with limited_pillow(LIMIT) as complaints:
        assert in_another_thread(warns, LIMIT)[:4] == b"\x89PNG"
        assert in_another_thread(plain, 15) == "has 0.0 megapixels"
        assert complaints == []
        with limited_pillow(15), pytest.raises(Refused, match=r"has 0\.0 megapixels"):
            read_image(plain, 15)
        assert read_image(plain, LIMIT).data == plain


def test_a_warning_in_a_thread_that_decodes_nothing_is_shown_as_usual() -> None:
    with warnings.catch_warnings(record=True) as shown, limited_pillow(LIMIT) as complaints:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warnings.warn, args=["it is late"])
        thread.start()
        thread.join()
        assert complaints == []
    assert [str(one.message) for one in shown] == ["it is late"]


def test_awkward_files_are_read_or_refused_with_a_reason_and_without_a_warning() -> None:
    outcomes = {}
    for path in sorted(shared_data("awkward").rglob("*")):
        if not path.is_file():
            continue
        for read in (read_image, numbers_in, colors_in, levels_in):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    read(path.read_bytes(), 10_000_000)
                    outcomes[path.name, read.__name__] = ""
                except Refused as refused:
                    assert refused.found and refused.expected
                    assert " at 0x" not in refused.found
                    outcomes[path.name, read.__name__] = refused.found
    assert outcomes["bomb_30000x30000_1bit.png", "read_image"] == "has 900.0 megapixels"
    assert outcomes["lying_ihdr_60000x60000_rgb.png", "read_image"] == "has 3,600.0 megapixels"
    assert outcomes["zero_byte.png", "read_image"] == "is empty (0 bytes)"
    assert outcomes["text_named.png", "read_image"] == "cannot be recognized as an image"
    assert outcomes["truncated_jpeg.jpg", "read_image"].startswith("cannot be decoded")
    for name in ("jpeg_named.png", "pil_sample_cmyk.jpg", "hopper.webp", "hopper_bad_exif.jpg", "p_trns_single.png"):
        assert outcomes[name, "read_image"] == ""


def test_photos_of_all_orientations_show_the_same_picture() -> None:
    folder = shared_data("awkward") / "pillow"
    turned = [decoded((folder / f"hopper_orientation_{orientation}.jpg").read_bytes()) for orientation in range(2, 9)]
    for picture in turned:  # all of them were compressed from one photo
        assert np.abs(picture.astype(int) - turned[0]).mean() < 5  # with a wrong rotation, the mean difference is 62


def gray_png(values: list[int], bits: int) -> bytes:
    """Return a gray PNG. Pillow cannot write such a file, so its chunks are set by hand."""
    packed = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8, "big")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)),
              (b"IDAT", zlib.compress(b"\0" + packed)), (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_a_2_bit_gray_image_keeps_its_brightness() -> None:
    assert decoded(gray_png([0, 1, 2, 3], 2))[0, :, 0].tolist() == [0, 85, 170, 255]


def test_a_mask_survives_encoding() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
    assert encode_mask(mask) == encode_mask(mask)
