import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pspnet.errors import UserError
from pspnet.evaluation.panels import IGNORED, WRONG, Picture, class_layer, error_layer, wrong_pixels
from pspnet.evaluation.report import EvaluationReport, load_report, write_report
from pspnet.metrics import class_iou, confusion_matrix, intersection_and_union, mean_iou, pixel_accuracy

PROTOCOL = "mean over the scales 1, 2; <no> flip"
CLASSES = ("road", 'car <b> & "van"', "train")
COLORS = ((128, 64, 128), (0, 0, 142), (0, 80, 100))
MASK = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORED]], np.uint8)
PREDICTION = np.array([[0, 0, 1, 0], [0, 1, 1, 1]], np.uint8)


def picture(name: str, mask: np.ndarray = MASK, prediction: np.ndarray = PREDICTION) -> Picture:
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    return Picture(name, mean_iou(confusion_matrix(mask, prediction, 3, IGNORED)), image, mask, prediction)


def of_classes(kind: str, values: np.ndarray) -> dict[str, float]:
    return {f"{kind}_{name}": value for name, value in zip(CLASSES, values, strict=True)}


def report_of(*pictures: tuple[str, Picture]) -> EvaluationReport:
    rows, total = [], np.zeros((3, 3), np.int64)
    for group, one in pictures:
        confusion = confusion_matrix(one.mask, one.prediction, 3, IGNORED)
        total += confusion
        intersection, union = intersection_and_union(confusion)
        rows.append(
            {
                "id": one.id,
                "group": group,
                "pixels": int(confusion.sum()),
                "pixel_accuracy": pixel_accuracy(confusion),
                "mean_iou": one.mean_iou,
                **of_classes("iou", class_iou(confusion)),
                **of_classes("intersection", intersection),
                **of_classes("union", union),
            }
        )
    facts = {"backbone": "ResNet-18, width 0.25", "output stride": "8"}
    images = pd.DataFrame(rows)
    return EvaluationReport(facts, "b" * 64, PROTOCOL, "test", "f" * 64, CLASSES, COLORS, total, images)


@pytest.fixture
def report() -> EvaluationReport:
    perfect = np.where(MASK == IGNORED, 0, MASK).astype(np.uint8)
    return report_of(
        ("good", picture("good/1", prediction=perfect)),
        ("bad", picture("bad/1")),
        ("bad", picture("bad/2", prediction=np.zeros_like(MASK))),
    )


def histories() -> dict[str, pd.DataFrame]:
    finetune = pd.DataFrame(
        {"epoch": [1, 2, 3], "learning_rate": [0.01, 0.006, 0.002], "loss": [1.5, 0.9, 0.7], "note": ["a", "b", "c"]}
    )
    return {
        "pretrain": pd.DataFrame(),
        "finetune": finetune.assign(val_loss=[np.inf, 0.8, 0.75], val_mean_iou=[np.nan, 0.4375, 0.40625]),
    }


def write(report: EvaluationReport, folder: Path, best: list[Picture] | None = None) -> str:
    write_report(report, best or [], [picture("bad/1")], histories(), folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_headline_numbers_equal_those_computed_by_hand() -> None:
    one = report_of(("scene", picture("only")))
    # Road covers 4 pixels, of which 3 are found. Car covers 3 pixels, of which 2 are found. The unions are 3 + 1 + 1 =
    # 5 and 2 + 1 + 1 = 4.
    assert one.confusion.tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert one.pixel_accuracy == pytest.approx(5 / 7)
    assert one.class_iou[:2].tolist() == pytest.approx([3 / 5, 2 / 4])
    assert one.mean_iou == pytest.approx((0.6 + 0.5) / 2)
    assert one.summary()["pixels"] == 7


def test_numbers_on_the_page_equal_those_in_the_report(tmp_path: Path) -> None:
    page = write(report_of(("scene", picture("only"))), tmp_path)
    assert '<dd class="big">0.550</dd>' in page
    assert "<dt>pixel accuracy</dt><dd>0.714</dd>" in page
    assert "road → road: 3 (75.0 %)" in page


def test_groups_are_listed_worst_first_with_the_mean_over_their_images(report: EvaluationReport) -> None:
    # The score of bad/1 is (0.6 + 0.5) / 2. In bad/2, road is predicted everywhere: (4 / 7 + 0) / 2.
    assert report.groups["group"].tolist() == ["bad", "good"]
    assert report.groups["images"].tolist() == [2, 1]
    assert report.groups["pixels"].tolist() == [14, 7]
    assert report.groups["mean_iou"].tolist() == pytest.approx([(0.55 + 2 / 7) / 2, 1.0])


def test_a_report_survives_writing_and_loading(report: EvaluationReport, tmp_path: Path) -> None:
    write(report, tmp_path)
    again = load_report(tmp_path)
    for name in ("model", "bundle", "protocol", "split", "fingerprint", "classes", "colors"):
        assert getattr(again, name) == getattr(report, name)
    np.testing.assert_array_equal(again.confusion, report.confusion)
    assert again.confusion.dtype == np.int64
    pd.testing.assert_frame_equal(again.images, report.images)
    assert again.summary() == report.summary()


def test_the_page_and_the_file_say_how_the_images_were_predicted(report: EvaluationReport, tmp_path: Path) -> None:
    page = write(report, tmp_path)
    assert "How the images were predicted: mean over the scales 1, 2; &lt;no&gt; flip." in page
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["protocol"] == PROTOCOL
    assert facts["counting"].startswith("One confusion matrix counts")


def test_tables_for_other_tools_hold_the_same_numbers(report: EvaluationReport, tmp_path: Path) -> None:
    write(report, tmp_path)
    counts = pd.read_csv(tmp_path / "confusion.csv", index_col=0)
    assert tuple(counts.index) == tuple(counts.columns) == CLASSES
    np.testing.assert_array_equal(counts.to_numpy(), report.confusion)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "groups.parquet"), report.groups)


def test_a_class_named_like_a_formula_is_text_in_a_table(report: EvaluationReport, tmp_path: Path) -> None:
    write(replace(report, classes=("=1+1", *CLASSES[1:])), tmp_path)
    counts = pd.read_csv(tmp_path / "confusion.csv", index_col=0)
    assert counts.index[0] == counts.columns[0] == "'=1+1"


@pytest.mark.parametrize("missing", ["report.json", "images.parquet"])
def test_an_incomplete_folder_is_reported_with_what_it_lacks(
    report: EvaluationReport, tmp_path: Path, missing: str
) -> None:
    write(report, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}: no {missing}"):
        load_report(tmp_path)


def test_a_report_in_a_different_format_is_refused(report: EvaluationReport, tmp_path: Path) -> None:
    write(report, tmp_path)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99; expected format 3"):
        load_report(tmp_path)


def test_pixel_counts_per_image_are_in_the_table_but_not_on_the_page(report: EvaluationReport, tmp_path: Path) -> None:
    page = write(report, tmp_path)
    assert "intersection" not in page and "union" not in page
    counts = pd.read_parquet(tmp_path / "images.parquet").filter(regex="^(intersection|union)_")
    assert counts.shape == (3, 6)
    assert set(counts.dtypes) == {np.dtype(np.int64)}


def test_columns_of_classes_share_charts_of_five(report: EvaluationReport, tmp_path: Path) -> None:
    names = ["sky", "road", "car_loss", "<b>", "tree", "pole"]
    shares = {f"accepted/{name}": [np.nan, 0.1, 0.2] for name in names}
    history = pd.DataFrame({"epoch": [1, 2, 3], "loss": [1.5, 0.9, 0.7], **shares})
    write_report(report, [], [picture("bad/1")], {"finetune": history}, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    training = page[page.index("<h2>Training</h2>") :]
    assert re.findall(r"<h4>(.*?)</h4>", training) == ["loss", "accepted", "accepted, from class 6"]
    assert re.findall(r"</i>(.*?)</th>", training) == ["loss", "sky", "road", "car loss", "&lt;b&gt;", "tree", "pole"]


def test_the_same_report_gives_the_same_bytes(report: EvaluationReport, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        write(report, tmp_path / name, best=[picture("good/1")])
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == ["confusion.csv", "groups.parquet", "images.parquet", "picture.png", "report.html", "report.json"]
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name


def test_class_names_and_image_ids_are_escaped(report: EvaluationReport, tmp_path: Path) -> None:
    page = write(report, tmp_path, best=[picture("<script>alert(1)</script>")])
    assert "car &lt;b&gt; &amp; &#34;van&#34;" in page
    assert "<b> &" not in page
    assert "<script" not in page


def test_the_page_needs_no_other_files(report: EvaluationReport, tmp_path: Path) -> None:
    page = write(report, tmp_path)
    assert not re.search(r"https?://|@import|<link|<script|<iframe", page)
    references = re.findall(r"""(?:href|src)=["']?([^"'\s>]{5})|url\(([^)]{5})""", page)
    assert len(references) > 4  # otherwise the test would not have found the pictures
    assert all((one or other).startswith(("data:", "#")) for one, other in references)


def test_an_absent_class_says_so_on_the_page_and_is_null_in_json(report: EvaluationReport, tmp_path: Path) -> None:
    page = write(report, tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["class_iou"]["train"] is None
    assert facts["class_iou"]["road"] == pytest.approx(11 / 16)  # 4 + 3 + 4 pixels found; unions 4 + 5 + 7
    rows = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", page, re.DOTALL)
    train = next(row for row in rows if "train" in row)
    assert ">absent<" in train and "<rect" not in train
    assert ">absent<" not in next(row for row in rows if "road" in row)


def test_a_report_without_any_labeled_pixel_can_be_written(tmp_path: Path) -> None:
    silent = picture("silent", mask=np.full((4, 4), IGNORED, np.uint8), prediction=np.zeros((4, 4), np.uint8))
    report = report_of(("scene", silent))
    assert '<dd class="big">\u2013</dd>' in write(report, tmp_path, best=[silent])
    assert json.loads((tmp_path / "report.json").read_text())["mean_iou"] is None
    assert np.isnan(load_report(tmp_path).mean_iou)


def test_errors_mark_exactly_the_wrong_pixels_that_are_not_ignored() -> None:
    wrong = [[False, False, False, True], [False, True, False, False]]
    assert wrong_pixels(MASK, PREDICTION).tolist() == wrong
    layer = error_layer(MASK, PREDICTION)
    assert (layer == WRONG).all(axis=-1).tolist() == wrong
    clear = layer[..., 3] == 0
    assert clear.tolist() == [[True, True, True, False], [True, False, True, False]]


def test_the_class_layer_shows_class_colors_and_none_on_ignored_pixels() -> None:
    layer = class_layer(MASK, COLORS)
    assert layer[0, 0].tolist() == [*COLORS[0], 255]
    assert layer[1, 2].tolist() == [*COLORS[1], 255]
    assert layer[1, 3, :3].tolist() == [128, 128, 128]


def test_skipped_pretraining_is_shown_as_skipped(report: EvaluationReport, tmp_path: Path) -> None:
    page = write(report, tmp_path)
    pretrain, finetune = page.split("<h3>pretrain</h3>")[1].split("<h3>finetune</h3>")
    assert "skipped" in pretrain and "<svg" not in pretrain
    assert "skipped" not in finetune


def test_curves_draw_every_numeric_column_and_nothing_else(report: EvaluationReport, tmp_path: Path) -> None:
    finetune = write(report, tmp_path).split("<h3>finetune</h3>")[1]
    assert re.findall(r"<h4>(.*?)</h4>", finetune) == ["loss", "score", "learning rate"]
    counts = [len(points.split()) for points in re.findall(r'points="(.*?)"', finetune)]
    assert counts == [3, 2, 2, 3]  # an infinite loss or a missing score is not plotted
    assert "0.4375" in finetune  # the best score, not the last
    assert "nan" not in finetune


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [0.5], [1e-9, 3e-9], [-2.0, -1.0], [7.0, 7.0 + 1e-13], [12345.678, 12345.679]]
)
def test_a_curve_of_any_range_stays_inside_its_chart(
    report: EvaluationReport, tmp_path: Path, values: list[float]
) -> None:
    history = pd.DataFrame({"epoch": range(len(values)), "loss": values})
    write_report(report, [], [], {"finetune": history}, tmp_path)
    points = re.search(r'points="(.*?)"', (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert points is not None
    for point in points[1].split():
        x, y = map(float, point.split(","))
        assert 44 <= x <= 348 and 8 <= y <= 152


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (2000, 1500), (3, 5)])
def test_a_picture_of_any_shape_has_a_sane_size_on_the_page(
    report: EvaluationReport, tmp_path: Path, shape: tuple[int, int]
) -> None:
    indices = np.add.outer(np.arange(shape[0]) // 50, np.arange(shape[1]) // 50).astype(np.uint8) % 3
    page = write(report, tmp_path, best=[picture("odd", indices, np.zeros_like(indices))])
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)" role="img" aria-label="image of odd"', page)[0])
    assert 16 <= width <= 480 and 16 <= height <= 480 and max(width, height) >= 120


def test_a_page_of_many_pictures_and_classes_stays_small(tmp_path: Path) -> None:
    classes = tuple(f"class {index} with a long name" for index in range(150))
    confusion = np.ones((150, 150), np.int64) + np.diag(np.full(150, 1000))
    images = pd.DataFrame({"id": ["a"], "group": ["g"], "pixels": [9], "pixel_accuracy": [0.9], "mean_iou": [0.8]})
    report = EvaluationReport({}, "b", "single scale", "test", "f", classes, COLORS * 50, confusion, images)
    stripes = np.repeat(np.arange(720)[:, None] // 10 % 150, 960, axis=1).astype(np.uint8)
    noise = Picture(
        "noise", 0.5, np.random.default_rng(0).integers(0, 256, (720, 960, 3), dtype=np.uint8), stripes, stripes
    )
    write_report(report, [noise] * 4, [noise] * 4, {}, tmp_path)
    # A 480 x 360 photograph of pure noise is 0.5 MB, or 0.7 MB as text. It is stored once per picture, not per layer.
    assert (tmp_path / "report.html").stat().st_size < 8 * 0.7e6 + 4e6
