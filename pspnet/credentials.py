"""Passwords and tokens in addresses: hidden wherever text leaves this process."""

import re
import sys
from typing import Any, TextIO, cast

HIDDEN = "***"
# `bob:secret@`, also with / and @ in the password, and a port, which is none; then a token in the place of a name.
_PASSWORD = re.compile(r"(://[^:/@\s\"'<>]*):(?!\d{1,5}(?:[/?#\s]|$))[^\s\"'<>]*@")
_NAME = re.compile(r"://[^:/@\s\"'<>]+@")
_OPTION = re.compile(
    r"(?i)([?&][^=&\s]*(?:password|passwd|pwd|token|secret|key|sig|signature|credential)=)[^&\s\"'<>]+"
)


def hidden(text: str) -> str:
    """An address, or a text with addresses, without the passwords that may stand in it."""
    text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _NAME.sub(f"://{HIDDEN}@", text)
    return _OPTION.sub(rf"\1{HIDDEN}", text)


def in_address(text: str) -> bool:
    """Whether an address holds a password or a token."""
    return hidden(text) != text


def hide_in_output() -> None:
    """From here on, in all that this process prints: messages, logs, warnings, tracebacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Hiding):
            setattr(sys, name, cast("TextIO", _Hiding(stream)))


class _Hiding:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hidden(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
