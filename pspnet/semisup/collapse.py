"""The guard against pseudo labels that have collapsed into one class."""

from collections.abc import Mapping, Sequence

from pspnet.errors import Problem, UserError

VALIDATIONS = 3  # in a row
LEAST_SHARE = 0.1  # of the share that the other classes have in the masks


def check_collapse(records: Sequence[Mapping[str, float]], in_masks: Mapping[str, int]) -> None:
    """Raise a UserError if, in each of the last records, one class has nearly all accepted pixels, and val is no better
    than at their beginning: a network that has just begun to learn may also know only one class.

    `in_masks`: the pixels of each class in the masks that were trained on. A class may dominate there too.
    """
    last = [accepted_in(record) for record in records[-VALIDATIONS:]]
    if len(last) < VALIDATIONS or not all(sum(accepted.values()) > 0 for accepted in last):
        return
    if records[-1]["val_mean_iou"] > records[-VALIDATIONS]["val_mean_iou"]:
        return
    for name, pixels in in_masks.items():
        others_in_masks = 1 - pixels / sum(in_masks.values())
        others = max(1 - accepted[name] / sum(accepted.values()) for accepted in last)
        if others < LEAST_SHARE * others_in_masks:
            raise UserError(_collapsed(name, 1 - others, 1 - others_in_masks))


def accepted_in(record: Mapping[str, float]) -> dict[str, float]:
    """Class -> the share of pixels that are accepted as this class; empty during the warm-up."""
    return {key.partition("/")[2]: share for key, share in record.items() if key.startswith("accepted/")}


def _collapsed(name: str, accepted: float, in_masks: float) -> Problem:
    found = (
        f"the pseudo labels have collapsed: in the last {VALIDATIONS} validations at least {accepted:.1%} of them were "
        f"'{name}', which has {in_masks:.1%} of the pixels in the masks, and val did not improve"
    )
    fix = (
        "The network forgets the other classes. Raise confidence, warmup_share or class_balance, lower weight, or set "
        "kind: none."
    )
    return Problem("finetune.unlabeled", found, "pseudo labels of every class", fix)
