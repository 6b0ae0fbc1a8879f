"""Shows a decision of the gate as a single HTML page."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pspnet.registry.gate import Decision, reaches, score


def decision_page(decision: Decision) -> str:
    """Return the page as HTML that does not load any other file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"score": score, "signed": _signed}
    template = environment.from_string(Path(__file__).with_name("decision_page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        decision=decision,
        headline=decision.summary().removeprefix(f"{decision.outcome}: "),
        classes=_class_rows(decision),
        axis=_axis(decision),
    )


def _signed(value: float | None, missing: str = "") -> str:
    return missing if value is None else "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def _class_rows(decision: Decision) -> list[dict[str, Any]]:
    """Return a row for each class of the candidate, then for each class that only the champion has."""
    new = decision.candidate.class_iou
    old = decision.champion.class_iou if decision.champion else {}
    rows = []
    for name in [*new, *(name for name in old if name not in new)]:
        ours, theirs = new.get(name), old.get(name)
        difference = None
        if decision.difference is not None and ours is not None and theirs is not None:
            difference = ours - theirs
        rows.append(
            {
                "name": name,
                "candidate": ours,
                "champion": theirs,
                "missing": {
                    "candidate": "absent" if name in new else "–",
                    "champion": "absent" if name in old else "–",
                },
                "difference": difference,
                "too_much": difference is not None and not reaches(difference, -decision.rules["max_class_loss"]),
            }
        )
    return rows


def _axis(decision: Decision) -> dict[str, float] | None:
    """Return where the ends of the interval, zero and the required gain lie, as fractions of the axis."""
    if decision.difference is None or decision.interval is None:
        return None
    required = decision.rules["min_gain"]
    shown = [0.0, decision.difference, *decision.interval]
    span = max(shown) - min(shown) or 0.01
    if min(shown) - span <= required <= max(shown) + span:  # showing a distant minimum would squeeze the rest
        shown.append(required)
    left, right = min(shown) - 0.1 * span, max(shown) + 0.1 * span
    low, high = decision.interval
    marks = {"zero": 0.0, "low": low, "high": high, "difference": decision.difference, "required": required}
    return {name: (value - left) / (right - left) for name, value in marks.items()}
