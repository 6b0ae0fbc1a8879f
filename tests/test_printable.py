"""File names can contain any character. Every character is shown, and none of them has an effect on the terminal."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from pspnet.errors import Problem
from pspnet.machine import terminal
from pspnet.printable import cell, printable, printable_lines

EVERY = st.text(st.characters(codec=None, categories=None))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café/図.png", "café/図.png"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # one character that means the same as ESC [
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),  # this name would be displayed as gnp.exe
    ],
)
def test_a_name_is_shown_in_one_line_of_text(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(EVERY)
def test_any_text_becomes_encodable_and_free_of_control_characters(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert shown.splitlines() == ([shown] if shown else [])
    assert printable(shown) == shown
    assert printable_lines(text).split("\n") == [printable(line) for line in text.split("\n")]


@pytest.mark.parametrize("sign", "=+-@")
def test_a_cell_never_starts_a_formula(sign: str) -> None:
    assert cell(f'{sign}HYPERLINK("http://x")') == f'\'{sign}HYPERLINK("http://x")'
    assert cell(f"1{sign}1") == f"1{sign}1"
    assert cell(f"\t{sign}1") == rf"\t{sign}1"


def test_a_problem_can_be_printed() -> None:
    problem = Problem("two\nlines\x1b[2J", "is called \x1b[2J", "\udce9", "Run\nthis: \x07")
    assert str(problem) == "two\\nlines\\x1b[2J: is called \\x1b[2J; expected \\udce9. Run\nthis: \\x07"


def test_no_name_acts_on_the_terminal() -> None:
    name = "\x1b]0;owned\x07\x1b[2J\udce9"
    table = Table("file", title=name)
    table.add_row(escape(name))
    for console in (terminal.out, terminal.err):
        with console.capture() as captured:
            console.print(f"{name}\nnext", markup=False)
            console.print(f"[bold]{escape(name)}[/]")
            console.print(table)
        shown = captured.get()
        assert not set(shown) & {*"\x1b\x07\udce9"}
        assert shown.count(r"\x1b]0;owned\x07\x1b[2J\udce9") == 4
        assert "\nnext\n" in shown


def test_no_name_acts_on_the_terminal_while_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0)
    with terminal.err.capture() as captured, terminal.progress("work") as tick:
        tick(1, 2, "\x1b[2J\n")
    assert captured.get().endswith("\\x1b[2J\\n\n")
