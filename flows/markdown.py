"""The names and texts of others on Prefect's pages, which show Markdown: as they are, never as markup."""

import re

MARKUP = re.compile(r"[\\`*_{}\[\]<>|~!#&$@]|:(?=//)|(?<=\bwww)\.")


def escaped(text: object) -> str:
    """On one line, for a heading, a paragraph or a cell of a table."""
    return MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
