"""Small drawn sets, each arranged like a public set that `inspect` had never seen."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.raw.rawdata import Pixels, encoded, noise, write

HEIGHT, WIDTH = 48, 64
COUNT = 12
VOID = 11
DRIVES = ("0001TP_{:06}", "0016E5_{:05}")


def photo(seed: int, kind: str = "PNG") -> bytes:
    return encoded(Image.fromarray(noise(6, 8, seed=seed)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), kind)


def blob(seed: int, value: int = 255, around: int = 0) -> Pixels:
    """Draw an ellipse, in a different place for each seed."""
    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH), around, np.uint8)
    center = int(rng.integers(14, WIDTH - 14)), int(rng.integers(12, HEIGHT - 12))
    cv2.ellipse(pixels, center, (int(rng.integers(4, 12)), int(rng.integers(4, 10))), 30, 0, 360, value, -1)
    return pixels


def black() -> Pixels:
    return np.zeros((HEIGHT, WIDTH), np.uint8)


def field_of_view() -> Pixels:
    """Draw the region that the camera sees. It is the same in every image."""
    pixels = black()
    cv2.circle(pixels, (WIDTH // 2, HEIGHT // 2), 22, 255, -1)
    return pixels


def numbers(seed: int, classes: int) -> Pixels:
    """Draw vertical stripes of all classes, shifted differently for each seed."""
    return ((np.arange(WIDTH) + seed) // 5 % classes)[None].repeat(HEIGHT, 0).astype(np.uint8)


def hashed(number: int) -> str:
    return f"{number * 2654435761 % 2**32:08x}{'ab' * 4}"


def folder_per_image(raw: Path) -> Path:
    """One folder per image, with one mask file per object: Data Science Bowl 2018."""
    for number in range(COUNT):
        folder = raw / "stage1_train" / hashed(number)
        write(folder / f"images/{hashed(number)}.png", photo(number))
        for one in range(1 + number % 3):
            write(folder / f"masks/{hashed(1000 + 10 * number + one)}.png", encoded(blob(10 * number + one)))
    for number in range(3):
        write(raw / f"stage1_test/{hashed(500 + number)}/images/{hashed(500 + number)}.png", photo(500 + number))
    return raw


def same_names_in_folders(raw: Path) -> Path:
    """A folder for each image, with image.png and label.png."""
    for number in range(COUNT):
        write(raw / f"case{number:02}/image.png", photo(number))
        write(raw / f"case{number:02}/label.png", encoded(numbers(number, 3)))
        write(raw / f"case{number:02}/label_viz.png", photo(900 + number))
    return raw


def class_beside(raw: Path) -> Path:
    """The name of a folder is the class, and masks are next to the images, sometimes two per image: breast ultrasound
    (BUSI).
    """
    for place, name in enumerate(("benign", "malignant", "normal")):
        for number in range(1, COUNT + 1):
            seed = 100 * place + number
            write(raw / f"{name}/{name} ({number}).png", photo(seed))
            mask = black() if name == "normal" else blob(seed)
            write(raw / f"{name}/{name} ({number})_mask.png", encoded(mask))
            if number in (3, 7) and name == "benign":
                write(raw / f"{name}/{name} ({number})_mask_1.png", encoded(blob(seed + 50)))
    return raw


def class_in_both(raw: Path) -> Path:
    """The same class folders in images/CLASS and masks/CLASS."""
    for place, name in enumerate(("crack", "rust", "weld")):
        for number in range(COUNT):
            write(raw / f"images/{name}/{name}{number:02}.jpg", photo(100 * place + number, "JPEG"))
            write(raw / f"masks/{name}/{name}{number:02}.png", encoded(blob(100 * place + number)))
    return raw


def scenes_in_both(raw: Path) -> Path:
    """The same scene folders in images/SCENE and masks/SCENE. Numbered folders are not classes."""
    for scene in range(10):
        for number in range(3):
            write(raw / f"images/scene{scene}/{number:02}.jpg", photo(100 * scene + number, "JPEG"))
            write(raw / f"masks/scene{scene}/{number:02}.png", encoded(blob(100 * scene + number)))
    return raw


def glued_camvid(raw: Path) -> Path:
    """The folders are called train/, trainannot/, ... as in SegNet's tutorial."""
    for place, split in enumerate(("train", "val", "test")):
        for number in range(COUNT):
            name = DRIVES[number % 2].format(1000 * place + 30 * number)
            write(raw / f"{split}/{name}.png", photo(100 * place + number))
            write(raw / f"{split}annot/{name}.png", encoded(numbers(number, VOID + 1)))
        write(raw / f"{split}.txt", f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n")
    return raw


def colored_camvid(raw: Path) -> Path:
    """CamVid in colors, with a color table that has an entry for Void."""
    colors = np.array([(128, 128, 128), (128, 64, 128), (0, 0, 0)], np.uint8)
    for place, split in enumerate(("train", "val", "test")):
        for number in range(COUNT):
            name = DRIVES[number % 2].format(1000 * place + 30 * number)
            write(raw / f"{split}/{name}.png", photo(100 * place + number))
            write(raw / f"{split}_labels/{name}_L.png", encoded(colors[numbers(number, 3)]))
    write(raw / "class_dict.csv", "name,r,g,b\nSky,128,128,128\nRoad,128,64,128\nVoid,0,0,0\nTree,128,128,0\n")
    return raw


def two_annotators_and_a_region(raw: Path) -> Path:
    """Retina vessels (DRIVE): two annotators and the field of view."""
    for split, first in (("training", 21), ("test", 1)):
        for number in range(first, first + COUNT):
            folder = raw / split
            write(folder / f"images/{number:02}_{split}.png", photo(number))
            write(folder / f"1st_manual/{number:02}_manual1.png", encoded(blob(number)))
            write(folder / f"mask/{number:02}_{split}_mask.png", encoded(field_of_view()))
            if split == "test":
                write(folder / f"2nd_manual/{number:02}_manual2.png", encoded(blob(number, value=255)))
    return raw


def two_annotators_in_one_folder(raw: Path) -> Path:
    """Retina vessels (CHASE_DB1)."""
    for number in range(1, COUNT + 1):
        for side in "LR":
            seed = 2 * number + (side == "R")
            write(raw / f"Image_{number:02}{side}.jpg", photo(seed, "JPEG"))
            write(raw / f"Image_{number:02}{side}_1stHO.png", encoded(blob(seed)))
            write(raw / f"Image_{number:02}{side}_2ndHO.png", encoded(blob(seed)))
    return raw


def experts_in_folders(raw: Path) -> Path:
    """masks/EXPERT looks like masks/CLASS, but the masks of an image overlap."""
    for number in range(COUNT):
        write(raw / f"images/{number:02}.jpg", photo(number, "JPEG"))
        for expert in ("miller", "smith"):
            write(raw / f"masks/{expert}/{number:02}.png", encoded(blob(number)))
    return raw


def region_beside(raw: Path) -> Path:
    """A region mask in its own folder, next to the real masks."""
    for number in range(COUNT):
        write(raw / f"images/{number:02}.jpg", photo(number, "JPEG"))
        write(raw / f"masks/{number:02}.png", encoded(field_of_view()))
        write(raw / f"truth/{number:02}.png", encoded(blob(number)))
    return raw


def foreign_voc(raw: Path) -> Path:
    """The folders of PASCAL VOC, but with different classes."""
    for number in range(COUNT):
        write(raw / f"JPEGImages/weld_{number:02}.jpg", photo(number, "JPEG"))
        write(raw / f"SegmentationClass/weld_{number:02}.png", encoded(numbers(number, 3)))
    return raw


def foreign_cityscapes(raw: Path) -> Path:
    """The folders of Cityscapes, but with different classes."""
    for split in ("train", "val"):
        for number in range(COUNT):
            name = f"plant_{number:06}_000019"
            write(raw / f"leftImg8bit/{split}/plant/{name}_leftImg8bit.png", photo(number + 100 * len(split)))
            write(raw / f"gtFine/{split}/plant/{name}_gtFine_labelIds.png", encoded(numbers(number, 3)))
    return raw


def twin_palette(raw: Path) -> Path:
    """Indices 254 and 255 of the palette have the same color, and both mean the object."""
    palette = [0] * 3 + [90, 90, 90] * 253 + [255, 255, 255] * 2
    for number in range(COUNT):
        pixels = blob(number)
        pixels[(pixels == 255) & (np.arange(WIDTH) % 7 == 0)[None]] = 254
        image = Image.fromarray(pixels).convert("P")
        image.putdata(pixels.ravel().tolist())
        image.putpalette(palette)
        write(raw / f"images/{number:02}.jpg", photo(number, "JPEG"))
        write(raw / f"masks/{number:02}.png", encoded(image))
    return raw


def nearly_white(raw: Path) -> Path:
    """Masks saved as grayscale pictures, with values 253 and 254 as well as 255."""
    for number in range(COUNT):
        pixels = blob(number)
        pixels[pixels == 255] = np.where(np.arange((pixels == 255).sum()) % 9 == 0, 253 + number % 2, 255)
        write(raw / f"images/{number:02}.jpg", photo(number, "JPEG"))
        write(raw / f"masks/{number:02}.png", encoded(pixels))
    return raw


def blurred(raw: Path) -> Path:
    for number in range(COUNT):
        soft = Image.fromarray(blob(number)).resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)
        large = Image.fromarray(noise(2 * HEIGHT, 2 * WIDTH, seed=number))
        write(raw / f"images/{number:02}.png", encoded(large))
        write(raw / f"masks/{number:02}.png", encoded(soft))
    return raw


def uneven_patients(raw: Path) -> Path:
    """Ten patients; one of them has nearly half of the images."""
    for patient, count in enumerate((34, *[4] * 9)):
        for number in range(count):
            write(raw / f"images/p{patient:02}/{number:03}.jpg", photo(1000 * patient + number, "JPEG"))
            write(raw / f"masks/p{patient:02}/{number:03}.png", encoded(blob(1000 * patient + number)))
    return raw


def two_modalities(raw: Path) -> Path:
    """Two images and one mask for each case."""
    for number in range(COUNT):
        for place, name in enumerate(("flair", "t1")):
            write(raw / f"case{number:02}/{name}.png", photo(2 * number + place))
        write(raw / f"case{number:02}/seg.png", encoded(blob(number)))
    return raw


def companions(raw: Path) -> Path:
    """Other pictures made from the images are stored next to them: skin lesions (ISIC 2017)."""
    for number in range(COUNT):
        write(raw / f"Training_Data/ISIC_{number:07}.jpg", photo(number, "JPEG"))
        write(raw / f"Training_Data/ISIC_{number:07}_superpixels.png", photo(500 + number))
        write(raw / f"Training_GroundTruth/ISIC_{number:07}_segmentation.png", encoded(blob(number)))
    return raw


def plain(raw: Path, count: int = COUNT) -> Path:
    for number in range(count):
        write(raw / f"images/{number:02}.jpg", photo(number, "JPEG"))
        write(raw / f"masks/{number:02}.png", encoded(blob(number)))
    return raw


def pairs_by_suffix(raw: Path) -> Path:
    for number in range(COUNT):
        write(raw / f"{number:02}.jpg", photo(number, "JPEG"))
        write(raw / f"{number:02}.png", encoded(blob(number)))
    return raw


SETS = {
    make.__name__: make
    for make in (
        folder_per_image, same_names_in_folders, class_beside, class_in_both, scenes_in_both, glued_camvid,
        colored_camvid, two_annotators_and_a_region, two_annotators_in_one_folder, experts_in_folders, region_beside,
        foreign_voc, foreign_cityscapes, twin_palette, nearly_white, blurred, uneven_patients, two_modalities,
        companions, plain, pairs_by_suffix,
    )
}  # fmt: skip
