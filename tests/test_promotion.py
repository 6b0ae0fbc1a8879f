import json
import re
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap

from pspnet import promotion
from pspnet.config.promotion import PromotionParams
from pspnet.metrics import intersection_and_union
from pspnet.promotion import Decision, decide, decision_page, paired_bootstrap
from pspnet.report import EvaluationReport

CLASSES = ("road", "car", "sky", "tree", "train")
RULES: dict[str, Any] = {
    "min_mean_iou": 0.5,
    "min_gain": 0.1,
    "gain_measured_by": "difference",
    "max_class_loss": 0.1,
    "resamples": 200,
    "approval": "auto",
}
EVERY_RULE = [
    "loads and predicts",
    "not rolled back",
    "floor",
    "not the champion",
    "same classes",
    "same test split",
    "gain",
    "class loss",
]
Matrix = NDArray[np.int64]


def found(road_and_car: int, sky_and_tree: int | None = None, out_of: int = 100) -> Matrix:
    """IoU of road and car: road_and_car / out_of, that of sky and tree likewise; nothing shows a train.

    Of two classes, one has `hits` right pixels and the rest taken for the other, which has `hits` right ones alone:
    the union is `out_of` pixels for both.
    """
    confusion = np.zeros((5, 5), np.int64)
    for first, hits in ((0, road_and_car), (2, road_and_car if sky_and_tree is None else sky_and_tree)):
        confusion[first, first] = confusion[first + 1, first + 1] = hits
        confusion[first, first + 1] = out_of - hits
    return confusion


def with_train(confusion: Matrix) -> Matrix:
    """Some road is taken for a train: that class then has an IoU, and it is 0."""
    changed = confusion.copy()
    changed[0, 1] -= 1
    changed[0, 4] += 1
    return changed


def report(
    *images: Matrix, bundle: str = "a", classes: Sequence[str] = CLASSES, split: str = "today", groups: str = ""
) -> EvaluationReport:
    """`groups`: a letter for each image; without it, every image is a group of its own."""
    rows = []
    for number, confusion in enumerate(images):
        intersection, union = intersection_and_union(confusion)
        counts = {"intersection": intersection, "union": union}
        rows.append(
            {"id": f"image{number}", "group": groups[number] if groups else f"group{number}"}
            | {f"{kind}_{name}": v for kind, pixels in counts.items() for name, v in zip(classes, pixels, strict=True)}
        )
    total = np.sum(images, axis=0)
    colors = ((0, 0, 0),) * len(classes)
    rest = (split, tuple(classes), colors, total, pd.DataFrame(rows))
    return EvaluationReport({}, bundle, "single scale", "test", *rest)


def gate(candidate: EvaluationReport, champion: EvaluationReport | None, **changes: Any) -> Decision:
    rules = PromotionParams(**RULES | {name: value for name, value in changes.items() if name in RULES})
    asked = {
        "candidate_version": 7,
        "champion_version": 5,
        "predicts_the_same": None,
        "withdrawn": None,
        "earlier_decisions": 3,
        "forced": False,
    }
    return decide(candidate, champion, rules, **asked | {k: v for k, v in changes.items() if k not in RULES})


def broken(decision: Decision) -> list[str]:
    return [reason.rule for reason in decision.reasons if not reason.passed]


def text(decision: Decision, rule: str) -> str:
    return next(reason.text for reason in decision.reasons if reason.rule == rule)


GOOD, OLD = report(found(90)), report(found(80), bundle="b")
NOTHING = np.zeros((5, 5), np.int64)
OTHER = ("road", "car", "sky", "bush", "train")
SHUFFLED = ("car", "road", "sky", "tree", "train")
MIXED = [found(95), found(60), found(90), found(85)], [found(70), found(70), found(70), found(80)]


@pytest.mark.parametrize(
    ("candidate", "champion", "changes", "outcome", "rules", "words"),
    [
        # no champion: only what a model must be by itself
        pytest.param(GOOD, None, {}, "passed", [], "test mIoU 0.900, at least 0.500 is asked", id="first"),
        pytest.param(GOOD, None, {"min_mean_iou": 0.91}, "refused", ["floor"], "at least 0.910", id="first too weak"),
        pytest.param(GOOD, None, {"withdrawn": "was rolled back"}, "held", ["not rolled back"], "", id="first, rolled"),
        pytest.param(
            GOOD, None, {"predicts_the_same": "3 pixels differ"}, "refused", ["loads and predicts"], "3 pixels differ",
            id="first, but does not predict",
        ),
        # floor
        pytest.param(GOOD, OLD, {"min_mean_iou": 0.9}, "passed", [], "test mIoU 0.900", id="at the floor"),
        pytest.param(
            report(found(49996, out_of=100000)), None, {}, "refused", ["floor"],
            "test mIoU 0.49996, at least 0.500 is asked", id="just below the floor",
        ),
        # gain
        pytest.param(GOOD, OLD, {}, "passed", [], "gain 0.100 (0.800 → 0.900)", id="tie: 0.9 - 0.8 < 0.1 in floats"),
        pytest.param(
            report(found(8999, out_of=10000)), OLD, {}, "refused", ["gain"], "gain 0.0999", id="gain just under",
        ),
        pytest.param(GOOD, report(found(95), bundle="b"), {"min_gain": -0.05}, "passed", [], "", id="worse, allowed"),
        pytest.param(
            GOOD, report(found(95), bundle="b"), {"min_gain": 0.0}, "refused", ["gain"], "gain -0.050", id="worse",
        ),
        pytest.param(GOOD, report(found(90), bundle="b"), {"min_gain": 0.0}, "passed", [], "", id="just as good"),
        # lower end of the interval
        pytest.param(report(*MIXED[0]), report(*MIXED[1], bundle="b"), {"min_gain": 0.0}, "passed", [], "", id="luck"),
        pytest.param(
            report(*MIXED[0]), report(*MIXED[1], bundle="b"), {"min_gain": 0.0, "gain_measured_by": "lower_end"},
            "refused", ["gain"], "at least 0.000 is asked of its lower end", id="luck is not enough",
        ),
        pytest.param(
            report(*[found(90)] * 9), report(*[found(80)] * 9, bundle="b"), {"gain_measured_by": "lower_end"},
            "passed", [], "interval 0.100 to 0.100 resting on 9 groups", id="lower end ties",
        ),
        # loss of a class
        pytest.param(
            report(found(70, 99)), report(found(80, 50), bundle="b"), {}, "passed", [],
            "road loses 0.100 (0.800 → 0.700) the most", id="loss at the limit: 0.8 - 0.7 > 0.1 in floats",
        ),
        pytest.param(
            report(found(6999, 9900, out_of=10000)), report(found(80, 50), bundle="b"), {}, "refused", ["class loss"],
            "road loses 0.1001 (0.800 → 0.700), car loses 0.1001 (0.800 → 0.700)", id="loss just above the limit",
        ),
        pytest.param(
            report(found(90)), report(with_train(found(80)), bundle="b"), {}, "passed", [],
            "not to be compared: train (absent for the candidate)", id="class only the champion shows",
        ),
        pytest.param(
            report(with_train(found(90))), report(found(70), bundle="b"), {"min_gain": 0.0}, "passed", [],
            "not to be compared: train (absent for the champion)", id="class only the candidate shows",
        ),
        pytest.param(GOOD, OLD, {}, "passed", [], "train (absent for both)", id="class nobody shows"),
        # nothing to measure
        pytest.param(
            report(NOTHING), OLD, {}, "refused", ["floor", "gain"], "no gain, since the candidate has no test mIoU",
            id="candidate without mIoU",
        ),
        pytest.param(report(NOTHING), None, {}, "refused", ["floor"], "no pixel of the test split", id="first without"),
        pytest.param(
            GOOD, report(NOTHING, bundle="b"), {}, "refused", ["gain"], "the champion has no test mIoU",
            id="champion without mIoU",
        ),
        # the version
        pytest.param(
            GOOD, OLD, {"predicts_the_same": "no answer", "forced": True}, "refused", ["loads and predicts", "forced"],
            "only what is held can be forced", id="does not predict, forced",
        ),
        pytest.param(
            GOOD, OLD, {"withdrawn": "rolled back: night"}, "held", ["not rolled back"], "rolled back: night",
            id="rolled back",
        ),
        pytest.param(
            GOOD, OLD, {"withdrawn": "rolled back", "forced": True}, "passed", ["not rolled back"],
            "a person forced it past: not rolled back", id="rolled back, forced",
        ),
        pytest.param(
            GOOD, OLD, {"withdrawn": "rolled back", "min_gain": 0.2, "forced": True}, "refused",
            ["not rolled back", "gain", "forced"], "", id="rolled back and no gain, forced",
        ),
        # comparable
        pytest.param(
            GOOD, report(found(90)), {}, "refused", ["not the champion"], "is the champion already", id="same bundle",
        ),
        pytest.param(
            GOOD, report(found(90)), {"forced": True}, "refused", ["not the champion", "forced"], "", id="same, forced",
        ),
        pytest.param(
            GOOD, report(found(80), bundle="b", split="yesterday"), {}, "refused", ["same test split"],
            "test split today, the champion on yesterday", id="other test split",
        ),
        pytest.param(
            GOOD, report(found(80), bundle="b", split="yesterday"), {"forced": True}, "refused",
            ["same test split", "forced"], "", id="other test split, forced",
        ),
        pytest.param(
            GOOD, report(found(99), bundle="b", classes=OTHER, split="yesterday"), {}, "held", ["same classes"],
            "(new tree; gone bush): gain, its interval and loss by class were not computed", id="other classes",
        ),
        pytest.param(
            GOOD, report(found(99), bundle="b", classes=OTHER, split="yesterday"), {"forced": True}, "passed",
            ["same classes"], "a person forced it past: same classes", id="other classes, forced",
        ),
        pytest.param(
            report(found(40)), report(found(99), bundle="b", classes=OTHER), {"forced": True}, "refused",
            ["floor", "same classes", "forced"], "", id="other classes below the floor, forced",
        ),
        pytest.param(
            GOOD, report(found(99), bundle="b", classes=SHUFFLED), {}, "held", ["same classes"],
            "the same names in another order", id="other order of classes",
        ),
        pytest.param(GOOD, OLD, {"forced": True}, "passed", [], "though nothing held it", id="forced without need"),
    ],
)  # fmt: skip
def test_the_gate(
    candidate: EvaluationReport,
    champion: EvaluationReport | None,
    changes: dict[str, Any],
    outcome: str,
    rules: list[str],
    words: str,
) -> None:
    decision = gate(candidate, champion, **changes)
    assert (decision.outcome, broken(decision)) == (outcome, rules)
    assert words in "\n".join(reason.text for reason in decision.reasons)
    assert decision.forced == changes.get("forced", False)
    # One place in the order for every rule, whatever came of it.
    assert [*filter([r.rule for r in decision.reasons].__contains__, [*EVERY_RULE, "forced"])] == [
        reason.rule for reason in decision.reasons
    ]
    assert Decision.from_json(json.loads(json.dumps(decision.as_json(), allow_nan=False))) == decision
    decision_page(decision)


def test_every_rule_is_told_when_two_models_are_compared() -> None:
    assert [reason.rule for reason in gate(GOOD, OLD).reasons] == EVERY_RULE


@pytest.mark.parametrize(
    "champion", [None, report(found(90)), report(found(99), bundle="b", classes=OTHER, split="yesterday")]
)
def test_what_cannot_be_compared_has_no_difference(champion: EvaluationReport | None) -> None:
    decision = gate(GOOD, champion, forced=True)
    assert (decision.difference, decision.interval) == (None, None)
    assert not {"gain", "class loss"} & {reason.rule for reason in decision.reasons}


def test_decision_knows_both_sides() -> None:
    decision = gate(report(found(90, 80), found(90, 80)), report(found(80), found(80), bundle="b"))
    assert decision.champion is not None
    assert (decision.candidate.bundle, decision.candidate.version, decision.candidate.images) == ("a", 7, 2)
    assert (decision.champion.bundle, decision.champion.version) == ("b", 5)
    assert decision.candidate.mean_iou == pytest.approx(0.85)
    assert decision.candidate.class_iou == {"road": 0.9, "car": 0.9, "sky": 0.8, "tree": 0.8, "train": None}
    assert decision.difference == pytest.approx(0.05)
    assert (decision.fingerprint, decision.earlier_decisions) == ("today", 3)
    assert decision.rules == RULES


@pytest.mark.parametrize(
    ("decision", "summary"),
    [
        (gate(GOOD, None), "passed: mIoU 0.900, and there is no champion to compare with"),
        (
            gate(GOOD, OLD),
            "passed: mIoU 0.900, 0.100 above the champion's 0.800 (95 % interval 0.100 to 0.100)",
        ),
        (
            gate(report(found(78)), OLD, min_gain=-0.1, withdrawn="rolled back", forced=True),
            "passed: mIoU 0.780, 0.020 below the champion's 0.800 (95 % interval -0.020 to -0.020); forced by a person",
        ),
        (
            gate(report(found(80)), OLD, min_gain=0.0),
            "passed: mIoU 0.800, level with the champion's 0.800 (95 % interval 0.000 to 0.000)",
        ),
        (
            gate(GOOD, report(found(80), bundle="b", classes=SHUFFLED), forced=True),
            "passed: mIoU 0.900, not comparable with the champion's 0.800; forced by a person",
        ),
        (
            gate(report(found(40)), None, predicts_the_same="3 pixels differ"),
            (
                "refused: the registered version does not predict what the bundle predicts: 3 pixels differ; "
                "test mIoU 0.400, at least 0.500 is asked"
            ),
        ),
        (gate(GOOD, OLD, withdrawn="version 7 was rolled back"), "held: version 7 was rolled back"),
    ],
)
def test_summary_is_one_line(decision: Decision, summary: str) -> None:
    assert decision.summary() == summary


def test_one_group_has_no_spread_and_says_so() -> None:
    candidate, champion = (report(found(a), found(b), groups="xx", bundle=str(a)) for a, b in ((90, 80), (70, 75)))
    decision = gate(candidate, champion, gain_measured_by="lower_end")
    assert decision.difference == pytest.approx(0.85 - 0.725)
    assert decision.interval == (decision.difference, decision.difference)
    assert "1 group, which shows no spread" in text(decision, "gain")


def test_the_interval_names_the_groups_it_rests_on() -> None:
    candidate, champion = (report(*[found(a)] * 4, groups="xxyz", bundle=str(a)) for a in (90, 70))
    assert "resting on 3 groups" in text(gate(candidate, champion), "gain")


def test_the_digest_is_of_the_grounds_alone() -> None:
    decision = gate(GOOD, OLD)
    assert decision.digest == gate(GOOD, OLD).digest
    assert decision.digest == gate(GOOD, OLD, candidate_version=8, champion_version=6, earlier_decisions=9).digest
    assert decision.digest == Decision.from_json(decision.as_json()).digest
    others = [
        gate(GOOD, OLD, min_gain=0.05),
        gate(GOOD, OLD, approval="manual"),
        gate(GOOD, OLD, forced=True),
        gate(GOOD, OLD, withdrawn="rolled back"),
        gate(GOOD, OLD, predicts_the_same="no answer"),
        gate(GOOD, None),
        gate(GOOD, report(found(80), bundle="c")),
        gate(report(found(90), bundle="c"), OLD),
        gate(report(found(90), split="s"), report(found(80), bundle="b", split="s")),
        # refused twice, for other reasons
        gate(report(found(40)), None),
        gate(report(found(40)), None, predicts_the_same="no answer"),
    ]
    assert len({decision.digest, *(other.digest for other in others)}) == 1 + len(others)


def scenes(seed: int, groups: int, classes: int) -> tuple[pd.DataFrame, pd.DataFrame, list[str], NDArray[np.int64]]:
    """Two models on scenes that are easy or hard for both. Also the pixels summed by group: (G, 4, K)."""
    rng = np.random.default_rng(seed)
    names = [f"class{k}" for k in range(classes)]
    group = rng.permutation(np.concatenate([np.arange(groups), rng.integers(0, groups, 2 * groups)]))
    ease = rng.uniform(0.2, 0.95, groups)[group]
    union = rng.integers(50, 2000, (2, len(group), classes)) * (rng.random((2, len(group), classes)) < 0.8)
    share = np.clip(ease[:, None] + rng.normal([[[0.02]], [[0.0]]], 0.05, union.shape), 0, 1)
    intersection = (union * share).astype(np.int64)
    frames = [
        pd.DataFrame(
            {"id": [f"image{i}" for i in range(len(group))], "group": [f"scene{g}" for g in group]}
            | {f"intersection_{name}": intersection[m, :, k] for k, name in enumerate(names)}
            | {f"union_{name}": union[m, :, k] for k, name in enumerate(names)}
        )
        for m in (0, 1)
    ]
    sums = np.zeros((groups, 4, classes), np.int64)
    for m in (0, 1):
        np.add.at(sums[:, 2 * m], group, intersection[m])
        np.add.at(sums[:, 2 * m + 1], group, union[m])
    return frames[0], frames[1], names, sums


def scipys_interval(sums: NDArray[np.int64], paired: bool, seed: int) -> NDArray[np.float64]:
    """Their resampling of the groups' numbers, for each model; the statistic written out."""

    def mean_iou(model: int, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        totals = sums[drawn, 2 * model : 2 * model + 2].sum(axis=-3).astype(float)
        means: NDArray[np.float64] = np.nanmean(totals[..., 0, :] / totals[..., 1, :], axis=-1)
        return means

    def gain(ours: NDArray[np.int64], theirs: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        assert axis in (-1, ours.ndim - 1)
        return mean_iou(0, ours) - mean_iou(1, theirs)

    numbers = np.arange(len(sums))
    found = bootstrap(
        (numbers, numbers), gain, paired=paired, vectorized=True, method="percentile", n_resamples=4000, batch=200,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return np.array(found.confidence_interval)


@pytest.mark.parametrize(("groups", "classes"), [(12, 3), (40, 6), (150, 2)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_is_that_of_another_library(groups: int, classes: int, seed: int) -> None:
    candidate, champion, names, sums = scenes(seed, groups, classes)
    difference, interval = paired_bootstrap(candidate, champion, names, resamples=4000, seed=seed)
    by_hand = [np.nanmean(sums[:, at].sum(axis=0) / sums[:, at + 1].sum(axis=0)) for at in (0, 2)]
    assert difference == pytest.approx(by_hand[0] - by_hand[1], abs=1e-12)
    # The 2.5 % quantile of n normal draws has a standard error of sqrt(0.025 * 0.975 / n) / 0.058 standard deviations:
    # 0.042 for n = 4000, 0.06 for the difference of two such; the interval is 3.92 wide. Five of those:
    noise = 5 * 0.06 / 3.92 * (interval[1] - interval[0])
    assert interval == pytest.approx(scipys_interval(sums, True, seed), abs=noise)
    assert interval != pytest.approx(scipys_interval(sums, False, seed), abs=noise)


def test_the_interval_does_not_depend_on_the_order_of_images_or_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    candidate, champion, names, _ = scenes(0, 30, 3)
    first = paired_bootstrap(candidate, champion, names, 500)
    shuffled = champion.sample(frac=1, random_state=0, ignore_index=True)
    assert paired_bootstrap(candidate[::-1], shuffled, names, 500) == first
    monkeypatch.setattr(promotion, "DRAWN_AT_ONCE", 30 * 7)
    assert paired_bootstrap(candidate, champion, names, 500) == first
    assert paired_bootstrap(candidate, champion, names, 500, seed=1) != first


def test_a_class_absent_from_a_draw_takes_no_part_in_its_mean() -> None:
    candidate = report(np.diag([0, 0, 0, 0, 10]), np.diag([10, 0, 0, 0, 0]))  # a train, a road: all found
    train_as_car, road_as_car = np.zeros((2, 5, 5), np.int64)
    train_as_car[4, 1] = road_as_car[0, 1] = 10
    champion = report(train_as_car, road_as_car, bundle="b")
    difference, (low, high) = paired_bootstrap(candidate.images, champion.images, CLASSES, 1000)
    # With the train alone, the road alone or both: 1 for the candidate, 0 for the champion.
    assert (difference, low, high) == (1, 1, 1)


def test_draws_without_a_labelled_pixel_are_left_out() -> None:
    candidate, champion = (report(found(a), NOTHING, bundle=str(a)) for a in (90, 80))
    difference, (low, high) = paired_bootstrap(candidate.images, champion.images, CLASSES, 100)
    assert (difference, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_candidates_groups_count() -> None:
    """Both reports may be of one split, and the groups of an older one be named otherwise."""
    candidate, champion, names, _ = scenes(0, 20, 3)
    first = paired_bootstrap(candidate, champion, names, 200)
    assert paired_bootstrap(candidate, champion.assign(group="all"), names, 200) == first


def test_reports_of_other_images_are_a_bug() -> None:
    candidate, champion, names, _ = scenes(0, 10, 3)
    for other in (champion[1:], champion.replace({"id": {"image0": "image99"}}), pd.concat([champion, champion[:1]])):
        with pytest.raises(ValueError, match="not of the same images"):
            paired_bootstrap(candidate, other, names, 200)
    twice = pd.concat([candidate, candidate[:1]])
    with pytest.raises(ValueError, match="not of the same images"):
        paired_bootstrap(twice, twice, names, 200)


def test_a_hundred_thousand_groups_fit_into_little_memory() -> None:
    candidate, champion, names, _ = scenes(0, 100_000, 2)
    tracemalloc.start()
    try:
        paired_bootstrap(candidate, champion, names, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6  # all draws at once would be 100 x 100,000 x 8 bytes three times over, beside the tables


def test_the_page_needs_nothing_but_itself_and_escapes_names() -> None:
    names = ("<script>alert(1)</script>", 'car <b> & "van"', "sky", "tree", "train")
    candidate, champion = (report(found(a), found(a), bundle=str(a), classes=names) for a in (90, 80))
    page = decision_page(gate(candidate, champion, withdrawn="<img src=x> rolled back"))
    assert not re.search(r"https?://|@import|<link|<script|<iframe|<img|url\(|src=", page.replace("&lt;img src=x", ""))
    assert "&lt;script&gt;" in page and "car &lt;b&gt; &amp; &#34;van&#34;" in page
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page)


def test_the_page_shows_the_decision() -> None:
    page = decision_page(gate(report(found(60, 99)), report(found(80, 50), bundle="b"), min_gain=0.01))
    assert '<p class="outcome refused">refused</p>' in page
    assert "no class may lose more than 0.100 IoU: road loses 0.200 (0.800 → 0.600)" in page
    rows = {name: re.search(rf">{name}</span>.*?</tr>", page, re.DOTALL) for name in CLASSES}
    numbers = {name: re.findall(r'<td class="number.*?">(.*?)</td>', row[0]) for name, row in rows.items() if row}
    assert numbers == {
        "road": ["0.800", "0.600", "−0.200"],
        "car": ["0.800", "0.600", "−0.200"],
        "sky": ["0.500", "0.990", "+0.490"],
        "tree": ["0.500", "0.990", "+0.490"],
        "train": ["absent", "absent", "–"],
    }
    assert page.count('class="number loss"') == 2
    assert page.count('<figure class="interval"') == 1


def test_the_page_of_the_first_version_compares_nothing() -> None:
    page = decision_page(gate(GOOD, None, earlier_decisions=0))
    assert "<figure" not in page and ">difference<" not in page and "bundle of the champion" not in page
    assert "made no decisions before" in " ".join(page.split())


@pytest.mark.parametrize(("earlier", "words"), [(1, "1 decision before"), (1234, "1,234 decisions before")])
def test_the_page_says_how_often_the_split_has_decided(earlier: int, words: str) -> None:
    page = " ".join(decision_page(gate(GOOD, OLD, earlier_decisions=earlier)).split())
    assert f"This test split has made {words} this one; each further one makes a lucky winner likelier." in page


@pytest.mark.parametrize("min_gain", [-1.0, -0.01, 0.0, 0.5])
@pytest.mark.parametrize(("ours", "theirs"), [(90, 80), (80, 90), (80, 80)])
def test_the_interval_is_drawn_inside_its_frame(ours: int, theirs: int, min_gain: float) -> None:
    candidate, champion = report(found(ours), found(70)), report(found(theirs), found(71), bundle="b")
    figure = decision_page(gate(candidate, champion, min_gain=min_gain)).split("<figure")[1].split("</figure>")[0]
    places = [float(place) for place in re.findall(r'\b(?:x|x1|x2|cx)="([^"]*)%"', figure)]
    assert len(places) >= 5 and all(0 <= place <= 100 for place in places)
