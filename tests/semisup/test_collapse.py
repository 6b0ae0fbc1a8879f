"""The guard against collapsed pseudo labels, on histories written by hand."""

import pytest

from pspnet.errors import UserError
from pspnet.semisup.collapse import check_collapse

IN_MASKS = {"sky": 60, "road": 30, "car": 10}
Record = dict[str, float]


def record(sky: float, road: float, car: float, iou: float = 0.3) -> Record:
    return {"val_mean_iou": iou, "accepted/sky": sky, "accepted/road": road, "accepted/car": car}


SKY_ALONE = record(0.8, 0.01, 0.0)
HEALTHY = record(0.5, 0.2, 0.05)


def test_one_class_in_three_validations_in_a_row_stops_training() -> None:
    with pytest.raises(UserError) as error:
        check_collapse([HEALTHY, SKY_ALONE, SKY_ALONE, SKY_ALONE], IN_MASKS)
    assert str(error.value) == (
        "finetune.unlabeled: the pseudo labels have collapsed: in the last 3 validations at least 98.8% of them were "
        "'sky', which has 60.0% of the pixels in the masks, and val did not improve; expected pseudo labels of every "
        "class. The network forgets the other classes. Raise confidence, warmup_share or class_balance, lower weight, "
        "or set kind: none."
    )


@pytest.mark.parametrize(
    "records",
    [
        [],
        [SKY_ALONE, SKY_ALONE],
        [SKY_ALONE, SKY_ALONE, HEALTHY],
        [SKY_ALONE, HEALTHY, SKY_ALONE, SKY_ALONE],
        [{"val_mean_iou": 0.3}, SKY_ALONE, SKY_ALONE],  # the first is in the warm-up
        [SKY_ALONE, SKY_ALONE, record(0.8, 0.01, 0.0, iou=0.31)],  # val still improves
        [SKY_ALONE, SKY_ALONE, record(0.0, 0.8, 0.01)],  # another class
        [record(0.0, 0.0, 0.0)] * 3,  # nothing is accepted: nothing is learned from it
        [record(0.8, 0.04, 0.0)] * 3,  # 5% are others, and 40% of the pixels in the masks
    ],
)
def test_anything_less_does_not(records: list[Record]) -> None:
    check_collapse(records, IN_MASKS)


def test_a_class_may_dominate_if_it_does_so_in_the_masks() -> None:
    check_collapse([SKY_ALONE] * 3, {"sky": 950, "road": 40, "car": 10})
