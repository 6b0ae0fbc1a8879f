"""Choices -> params.yaml with each reason beside its number."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pspnet.planning.rules import Choice

WIDTH = 120


def params_text(content: Mapping[str, Any], choices: Sequence[Choice], heading: str) -> str:
    """All of `content` as YAML. The choices must already be in it."""
    reasons = {choice.key: choice.reason for choice in choices}
    return "\n".join([*(f"# {line}" for line in heading.splitlines()), "", *_lines(content, reasons)]) + "\n"


def _lines(content: Mapping[str, Any], reasons: Mapping[str, str], prefix: str = "", depth: int = 0) -> Iterator[str]:
    for name, value in content.items():
        key, indent = f"{prefix}{name}", "  " * depth
        if isinstance(value, Mapping) and value:
            if key in reasons:
                yield f"{indent}# {reasons[key]}"
            yield from (f"{indent}{_scalar(name)}:", *_lines(value, reasons, f"{key}.", depth + 1))
            if depth == 0:
                yield ""
            continue
        line = f"{indent}{_scalar(name)}: {_scalar(value)}"
        if reason := reasons.get(key):
            if len(line) + 2 + len(reason) + 2 > WIDTH:
                yield f"{indent}# {reason}"
            else:
                line = f"{line}  # {reason}"
        yield line


def _scalar(value: Any) -> str:
    """In flow style, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def with_choices(content: dict[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
    """A copy of `content` in which the choices replace what was there."""
    result = {name: dict(section) if isinstance(section, dict) else section for name, section in content.items()}
    for key, value, _ in choices:
        *sections, name = key.split(".")
        section = result
        for one in sections:
            section[one] = dict(section[one])
            section = section[one]
        section[name] = value
    return result
