"""Creates names and values that MLflow accepts: letters, digits, `.`, `_`, `-`, spaces, and `/` between name parts."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Values = Mapping[str, float | Mapping[Any, float | None] | None]

LONGEST_PART, LONGEST_VALUE = 150, 5000  # MLflow's limits: 250 for a name, 6000 for a value


def flat(section: BaseModel, prefix: str) -> dict[str, str]:
    """The params of a section by full name. A mapping with user-chosen keys (classes, colors) counts as one value."""
    params: dict[str, str] = {}
    for name in type(section).model_fields:
        value: Any = getattr(section, name)
        if isinstance(value, BaseModel):
            params |= flat(value, f"{prefix}.{name}")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            params[f"{prefix}.{name}"] = text[:LONGEST_VALUE]
    return params


def metrics(values: Values) -> dict[str, float]:
    """Flatten metrics: `{"iou": {"sky": 0.9}}` becomes `{"iou/sky": 0.9}`. Metrics without a value are left out."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts = distinct(value)
            found |= {f"{name}/{parts[part]}": float(one) for part, one in value.items() if one is not None}
        elif value is not None:
            found[name] = float(value)
    return found


def of_parts(values: Mapping[str, float]) -> Values:
    """Turn `{"iou/sky": 0.9}` into `{"iou": {"sky": 0.9}}`: what follows a slash may be any text."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        kind, slash, part = name.partition("/")
        if slash:
            found.setdefault(kind, {})[part] = value
        else:
            found[name] = value
    return found


def distinct(names: Mapping[str, Any]) -> dict[str, str]:
    """A valid name part for each of the names. The parts are distinct, even if case is ignored."""
    valid = {name: _valid(name) for name in names}
    count = Counter(part.casefold() for part in valid.values())
    return {
        name: part if count[part.casefold()] == 1 else f"{part}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        for name, part in valid.items()
    }


def _valid(name: str) -> str:
    part = re.sub(r"[^\w.\- ]", "_", name)[:LONGEST_PART]
    return part if part.strip(".") else "_" * max(1, len(part))  # `.` and `..` have special meanings in paths
