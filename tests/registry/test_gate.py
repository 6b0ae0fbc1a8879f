import json
from typing import Any

import pytest

from pspnet.evaluation.report import EvaluationReport
from pspnet.registry.decision_page import decision_page
from pspnet.registry.gate import Decision
from tests.registry.reports import GOOD, NOTHING, OLD, RULES, Matrix, found, gate, report

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
OTHER = ("road", "car", "sky", "bush", "train")
SHUFFLED = ("car", "road", "sky", "tree", "train")
MIXED = [found(95), found(60), found(90), found(85)], [found(70), found(70), found(70), found(80)]


def with_train(confusion: Matrix) -> Matrix:
    """Return the matrix with a road pixel predicted as train, so that train has an IoU of 0."""
    changed = confusion.copy()
    changed[0, 1] -= 1
    changed[0, 4] += 1
    return changed


def broken(decision: Decision) -> list[str]:
    return [reason.rule for reason in decision.reasons if not reason.passed]


def text(decision: Decision, rule: str) -> str:
    return next(reason.text for reason in decision.reasons if reason.rule == rule)


@pytest.mark.parametrize(
    ("candidate", "champion", "changes", "outcome", "rules", "words"),
    [
        # without a champion: only the rules about the candidate itself
        pytest.param(GOOD, None, {}, "passed", [], "test mIoU 0.900, at least 0.500 is required", id="first"),
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
            "test mIoU 0.49996, at least 0.500 is required", id="just below the floor",
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
        # lower end of the confidence interval
        pytest.param(report(*MIXED[0]), report(*MIXED[1], bundle="b"), {"min_gain": 0.0}, "passed", [], "", id="luck"),
        pytest.param(
            report(*MIXED[0]), report(*MIXED[1], bundle="b"), {"min_gain": 0.0, "gain_measured_by": "lower_end"},
            "refused", ["gain"], "at least 0.000 is required of its lower end", id="luck is not enough",
        ),
        pytest.param(
            report(*[found(90)] * 9), report(*[found(80)] * 9, bundle="b"), {"gain_measured_by": "lower_end"},
            "passed", [], "interval 0.100 to 0.100 from 9 groups", id="lower end ties",
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
            "not compared: train (absent for the candidate)", id="class only the champion shows",
        ),
        pytest.param(
            report(with_train(found(90))), report(found(70), bundle="b"), {"min_gain": 0.0}, "passed", [],
            "not compared: train (absent for the champion)", id="class only the candidate shows",
        ),
        pytest.param(GOOD, OLD, {}, "passed", [], "train (absent for both)", id="class nobody shows"),
        # no pixels to measure
        pytest.param(
            report(NOTHING), OLD, {}, "refused", ["floor", "gain"], "no gain: the candidate has no test mIoU",
            id="candidate without mIoU",
        ),
        pytest.param(report(NOTHING), None, {}, "refused", ["floor"], "no pixel in the test split", id="first without"),
        pytest.param(
            GOOD, report(NOTHING, bundle="b"), {}, "refused", ["gain"], "the champion has no test mIoU",
            id="champion without mIoU",
        ),
        # rules about the version
        pytest.param(
            GOOD, OLD, {"predicts_the_same": "no answer", "forced": True}, "refused", ["loads and predicts", "forced"],
            "only a held version can be forced", id="does not predict, forced",
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
        # whether the two can be compared
        pytest.param(
            GOOD, report(found(90)), {}, "refused", ["not the champion"], "is already the champion", id="same bundle",
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
            "the same names in a different order", id="other order of classes",
        ),
        pytest.param(GOOD, OLD, {"forced": True}, "passed", [], "no rule was broken", id="forced without need"),
    ],
)  # fmt: skip
def test_the_gate_decides_as_expected(
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
    # The rules keep their order regardless of the outcome.
    assert [*filter([r.rule for r in decision.reasons].__contains__, [*EVERY_RULE, "forced"])] == [
        reason.rule for reason in decision.reasons
    ]
    assert Decision.from_json(json.loads(json.dumps(decision.as_json(), allow_nan=False))) == decision
    decision_page(decision)


def test_a_comparison_states_a_reason_for_every_rule() -> None:
    assert [reason.rule for reason in gate(GOOD, OLD).reasons] == EVERY_RULE


@pytest.mark.parametrize(
    "champion", [None, report(found(90)), report(found(99), bundle="b", classes=OTHER, split="yesterday")]
)
def test_models_that_cannot_be_compared_have_no_difference(champion: EvaluationReport | None) -> None:
    decision = gate(GOOD, champion, forced=True)
    assert (decision.difference, decision.interval) == (None, None)
    assert not {"gain", "class loss"} & {reason.rule for reason in decision.reasons}


def test_a_decision_describes_both_sides() -> None:
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
            "passed: mIoU 0.900, 0.100 above the champion's 0.800 (95% interval 0.100 to 0.100)",
        ),
        (
            gate(report(found(78)), OLD, min_gain=-0.1, withdrawn="rolled back", forced=True),
            "passed: mIoU 0.780, 0.020 below the champion's 0.800 (95% interval -0.020 to -0.020); forced by a person",
        ),
        (
            gate(report(found(80)), OLD, min_gain=0.0),
            "passed: mIoU 0.800, level with the champion's 0.800 (95% interval 0.000 to 0.000)",
        ),
        (
            gate(GOOD, report(found(80), bundle="b", classes=SHUFFLED), forced=True),
            "passed: mIoU 0.900, not comparable with the champion's 0.800; forced by a person",
        ),
        (
            gate(report(found(40)), None, predicts_the_same="3 pixels differ"),
            (
                "refused: the registered version does not predict what the bundle predicts: 3 pixels differ; "
                "test mIoU 0.400, at least 0.500 is required"
            ),
        ),
        (gate(GOOD, OLD, withdrawn="version 7 was rolled back"), "held: version 7 was rolled back"),
    ],
)
def test_the_summary_is_one_line(decision: Decision, summary: str) -> None:
    assert decision.summary() == summary


def test_one_group_has_no_spread_and_says_so() -> None:
    candidate, champion = (report(found(a), found(b), groups="xx", bundle=str(a)) for a, b in ((90, 80), (70, 75)))
    decision = gate(candidate, champion, gain_measured_by="lower_end")
    assert decision.difference == pytest.approx(0.85 - 0.725)
    assert decision.interval == (decision.difference, decision.difference)
    assert "1 group, which shows no spread" in text(decision, "gain")


def test_the_gain_names_the_number_of_groups() -> None:
    candidate, champion = (report(*[found(a)] * 4, groups="xxyz", bundle=str(a)) for a in (90, 70))
    assert "from 3 groups" in text(gate(candidate, champion), "gain")


def test_the_digest_depends_only_on_the_grounds() -> None:
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
        # the version is rejected twice, for different reasons
        gate(report(found(40)), None),
        gate(report(found(40)), None, predicts_the_same="no answer"),
    ]
    assert len({decision.digest, *(other.digest for other in others)}) == 1 + len(others)
