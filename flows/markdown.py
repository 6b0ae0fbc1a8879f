"""Escapes names and texts for the Prefect UI, which renders Markdown."""

import re

MARKUP = re.compile(r"[\\`*_{}\[\]<>|~!#&$@]|:(?=//)|(?<=\bwww)\.")


def escaped(text: object) -> str:
    """The text as one line, for a heading, a paragraph or a table cell."""
    return MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
