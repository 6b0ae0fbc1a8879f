"""Writes counts as a person would."""


def counted(count: int, noun: str) -> str:
    """A count with its noun, such as `1 mask`, `2 masks` or `2 classes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
