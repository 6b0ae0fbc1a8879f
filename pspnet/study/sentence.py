"""The result in one sentence, from the same comparisons as the table."""

from collections.abc import Sequence

from pspnet.study.comparing import Chapter, Comparison

FAMILIES = ("semi-supervised training", "pretraining", "both together")


def headline(chapters: Sequence[Chapter]) -> str:
    """Return the sentence about the fewest masks that have an interval, at the largest number of steps."""
    told = [chapter for chapter in chapters if any(one.gain.interval for one in chapter.comparisons)]
    if not told:
        return _first_impression(chapters)
    steps = max(chapter.steps for chapter in told)
    return sentence(min((c for c in told if c.steps == steps), key=lambda chapter: chapter.masks))


def _first_impression(chapters: Sequence[Chapter]) -> str:
    wanted = "An interval requires two seeds"
    begun = [(one, chapter.masks) for chapter in chapters for one in chapter.comparisons if one.family != "control"]
    if not begun:
        return f"There is no answer yet. {wanted}, both of scratch and of another arm."
    one, masks = max(begun, key=lambda pair: pair[0].val_gain)
    return (
        f"There is no answer yet: with {masks:,} masks and a single seed, {one.arm} gives {score(one.mean_iou.value)} "
        f"against {score(one.scratch.value)}, which may be chance. {wanted}."
    )


def sentence(chapter: Chapter) -> str:
    best = chapter.best
    others = [name for name in FAMILIES if best is None or name != best.family]
    known = [one for one in chapter.comparisons if one.gain.interval]
    nothing = [name for name in others if (own := _of(known, name)) and not any(c.gain.is_above_zero for c in own)]
    clauses = []
    if best:
        clauses.append(
            f"with {chapter.masks:,} masks, {best.arm} gives {score(best.mean_iou.value)} against "
            f"{score(best.scratch.value)} ({signed(best.gain.value)}, {interval(best)}), at {best.cost:.1f} times the "
            "cost"
        )
        for name in others:
            if gaining := [one for one in _of(known, name) if one.gain.is_above_zero]:
                one = max(gaining, key=lambda one: one.val_gain)
                clauses.append(f"{one.arm} gives {signed(one.gain.value)} ({interval(one)})")
    else:
        clauses.append(f"with {chapter.masks:,} masks, scratch gives {score(chapter.scratch.value)}")
    if nothing:
        *first, last = nothing
        names = f"{', '.join(first)} and {last}" if first else last
        plural = first or last == "both together"
        clauses.append(f"{names} {'give' if plural else 'gives'} no measurable gain")
    text = "; ".join(clauses)
    if (more := chapter.doubling) and more.still_gains:
        text = f"train longer first: twice the steps still bring {signed(more.gain_per_doubling)} to scratch; {text}"
    return text[0].upper() + text[1:] + "."


def _of(comparisons: Sequence[Comparison], family: str) -> list[Comparison]:
    return [one for one in comparisons if one.family == family]


def score(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def interval(comparison: Comparison) -> str:
    """Return the interval of the gain in words."""
    assert comparison.gain.interval
    low, high = comparison.gain.interval
    return f"interval {signed(low).removeprefix('+')} to {signed(high).removeprefix('+')}"
