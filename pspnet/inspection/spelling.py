"""Counts, written as a person would write them."""


def counted(count: int, noun: str) -> str:
    """`1 mask`, `2 masks`, `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
