"""Makes names and text safe to show, so that no terminal, web page or spreadsheet interprets them."""

import re

# Control characters, which can start escape sequences or new lines; characters that change text direction, so that
# text displays in a different order; and surrogates, which Python uses for bytes that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    """The text as one line, with every unprintable character replaced by an escape sequence."""
    return UNPRINTABLE.sub(_spelled, text)


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """The text for a table cell, changed if necessary so that a spreadsheet does not run it as a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
