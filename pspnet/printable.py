"""Names and texts from anywhere, as any terminal, page and spreadsheet shows them without acting on them."""

import re

# Control characters, which begin escape sequences and lines; those that turn a text around, so that it reads as
# another; bytes that are no UTF-8, as Python holds them.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    """In one line."""
    return UNPRINTABLE.sub(_spelled, text)


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """Of a table that a person opens in a spreadsheet, which would run a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
