import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_jaccard_index

from pspnet.metrics import (
    NOTHING_IGNORED,
    class_iou,
    confusion_matrix,
    intersection_and_union,
    iou,
    mean_iou,
    mean_over_classes,
    pixel_accuracy,
)

IGNORE = 255


def test_hand_computed_example() -> None:
    mask = np.array([[0, 0, 1], [1, IGNORE, 1]], np.uint8)
    prediction = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    confusion = confusion_matrix(mask, prediction, 3, IGNORE)
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert class_iou(confusion)[:2].tolist() == [1 / 3, 2 / 4]
    assert np.isnan(class_iou(confusion)[2])
    assert mean_iou(confusion) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert pixel_accuracy(confusion) == 3 / 5


def test_agrees_with_two_other_libraries() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 5, (4, 32, 32)).astype(np.uint8)
    prediction = np.where(rng.random(mask.shape) < 0.6, mask, rng.integers(0, 5, mask.shape)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.1] = IGNORE
    confusion = sum(
        (confusion_matrix(m, p, 5, IGNORE) for m, p in zip(mask, prediction, strict=True)), np.zeros((5, 5), np.int64)
    )
    valid = mask != IGNORE
    assert (confusion == sklearn_confusion(mask[valid], prediction[valid])).all()
    assert class_iou(confusion) == pytest.approx(jaccard_score(mask[valid], prediction[valid], average=None))
    theirs = multiclass_jaccard_index(
        torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(mask.astype(np.int64)), 5, ignore_index=IGNORE
    )
    assert mean_iou(confusion) == pytest.approx(theirs.item())


def test_the_ignored_value_can_be_a_class_or_any_other_value() -> None:
    mask = np.array([[0, 1, 2, 11, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 0, 1]], np.uint8)
    assert confusion_matrix(mask[:, :4], prediction[:, :4], 3, 11).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert confusion_matrix(mask[:, :3], prediction[:, :3], 3, 1).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert confusion_matrix(mask[:, 4:], prediction[:, 4:], 3, 255).sum() == 0


@pytest.mark.parametrize(("mask", "prediction", "lost"), [([3, 0], [0, 0], 1), ([0, 0], [3, 255], 2)])
def test_a_value_that_is_not_a_class_is_an_error(mask: list[int], prediction: list[int], lost: int) -> None:
    with pytest.raises(ValueError, match=f"{lost} pixels have a value that is not one of the 3 classes"):
        confusion_matrix(np.array(mask, np.uint8), np.array(prediction, np.uint8), 3, IGNORE)


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[::2, ::3], np.s_[:1], np.s_[:, :1]])
def test_all_256_values_can_be_classes_and_arrays_of_any_layout_count(part: tuple[slice, ...]) -> None:
    rng = np.random.default_rng(0)
    mask, prediction = (rng.integers(0, 256, (70, 90)).astype(np.uint8) for _ in range(2))
    mask.flags.writeable = False
    expected = sklearn_confusion(mask[part].ravel(), prediction[part].ravel(), labels=range(256))
    assert np.array_equal(confusion_matrix(mask[part], prediction[part], 256, NOTHING_IGNORED), expected)


def test_no_pixels_lead_to_an_empty_confusion_matrix() -> None:
    nothing = np.zeros((0, 5), np.uint8)
    assert confusion_matrix(nothing, nothing, 2, IGNORE).tolist() == [[0, 0], [0, 0]]


def test_more_pixels_than_a_float32_can_count_are_counted_exactly() -> None:
    mask = np.zeros((4097, 4099), np.uint8)  # 2^24 is 4096 x 4096
    mask[0, :3] = 1
    assert confusion_matrix(mask, np.zeros_like(mask), 2, IGNORE).tolist() == [[4097 * 4099 - 3, 0], [3, 0]]


def test_images_without_annotation_have_no_score() -> None:
    confusion = np.zeros((2, 2), np.int64)
    assert np.isnan(mean_iou(confusion))
    assert np.isnan(pixel_accuracy(confusion))


def test_a_class_only_predicted_scores_zero_and_counts() -> None:
    confusion = np.array([[3, 1], [0, 0]])
    assert class_iou(confusion).tolist() == [0.75, 0]
    assert mean_iou(confusion) == 0.375


def test_intersections_and_unions_of_images_add_up_to_the_iou_of_all() -> None:
    rng = np.random.default_rng(0)
    confusions = rng.integers(0, 50, (7, 4, 4))
    confusions[:, 3] = confusions[:, :, 3] = 0
    counts = [intersection_and_union(confusion) for confusion in confusions]
    intersection, union = np.sum(counts, axis=0)
    total = confusions.sum(axis=0)
    by_hand = [total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(3)]
    assert iou(intersection, union).tolist() == pytest.approx([*by_hand, np.nan], nan_ok=True)
    assert np.array_equal(iou(intersection, union), class_iou(total), equal_nan=True)


def test_mean_over_classes_leaves_out_absent_ones_in_every_row() -> None:
    means = mean_over_classes(np.array([[0.5, np.nan, 0.0], [1.0, 0.5, 0.0], [np.nan] * 3]))
    assert means.tolist() == pytest.approx([0.25, 0.5, np.nan], nan_ok=True)
