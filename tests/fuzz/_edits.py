"""Strategies for bytes that contain a few mistakes."""

from typing import Literal

from hypothesis import strategies as st

_PARTS: list[tuple[Literal["big", "little"], slice]] = [
    ("big", slice(4)), ("big", slice(2, 4)), ("little", slice(4)), ("little", slice(2)),
]  # fmt: skip
EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
numbers = st.sampled_from([number.to_bytes(4, order)[part] for number in EXTREMES for order, part in _PARTS])
edits = st.tuples(
    st.floats(0, 1), st.sampled_from(["cut", "drop", "put", "over", "over"]), st.binary(max_size=8) | numbers
)


def edited(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for share, kind, new in changes:
        at = round(share * len(data))
        data = {
            "cut": data[:at],
            "drop": data[:at] + data[at + len(new) :],
            "put": data[:at] + new + data[at:],
            "over": data[:at] + new + data[at + len(new) :],
        }[kind]
    return data


def nearly(examples: list[bytes]) -> st.SearchStrategy[bytes]:
    """A strategy that draws one of the examples, sometimes with a few edits."""
    return st.builds(edited, st.sampled_from(examples), st.lists(edits, max_size=4))
