"""Editing the text of a params file."""

import difflib
from pathlib import Path

import pytest

from pspnet.config.editing import edited
from pspnet.config.reading import parse_value
from pspnet.errors import UserError
from tests.parameters import ROOT

TEXT = """# ours
a:
  number: 1     # one | two

  # about the name
  name: 'yes'
  list: []
b: {c: 3}  # in braces
"""
FILES = sorted([*ROOT.glob("recipes/*.yaml"), ROOT / "params.yaml"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_passing_no_values_changes_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert edited(text, {}, "params.yaml") == text


def test_only_the_lines_of_the_values_change() -> None:
    text = edited(TEXT, {"a.number": 2, "a.list": [7, 8], "b.c": 4}, "params.yaml")
    changes = [line for line in difflib.ndiff(TEXT.splitlines(), text.splitlines()) if line[0] in "+-"]
    assert changes == [
        "-   number: 1     # one | two", "+   number: 2     # one | two",
        "-   list: []", "+   list: [7, 8]",
        "- b: {c: 3}  # in braces", "+ b: {c: 4}  # in braces",
    ]  # fmt: skip


def test_a_new_comment_leaves_the_lines_below_alone() -> None:
    text = edited(TEXT, {}, "params.yaml", {"a.number": "because"})
    assert text == TEXT.replace("     # one | two", " # because")


def test_values_that_yaml_would_misread_are_read_back() -> None:
    value: dict[str, object] = {
        "yes": "no",
        "pattern": "^(.*)#\\d",
        "list": [1.0, "2", "off"],
        "time": "12:30",
        "rate": "1e-3",
        "empty": {},
        "none": None,
    }
    text = edited(TEXT, {"a.list": value}, "params.yaml")
    assert parse_value(text, "params.yaml")["a"]["list"] == value


def test_a_number_has_no_keys() -> None:
    with pytest.raises(UserError, match=r"'a\.number\.x' is not a parameter: 'number' has no keys"):
        edited(TEXT, {"a.number.x": 1}, "params.yaml")
