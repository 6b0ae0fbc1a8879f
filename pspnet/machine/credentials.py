"""Hide passwords and tokens in addresses wherever text leaves this process."""

import re
import sys
from typing import Any, TextIO, cast

HIDDEN = "***"
# The first pattern matches `bob:secret@`, where the password may contain / and @, but not a port such as `:5000/`. The
# second matches a token in place of a name.
_PASSWORD = re.compile(r"(://[^:/@\s\"'<>]*):(?!\d{1,5}(?:[/?#\s]|$))[^\s\"'<>]*@")
_NAME = re.compile(r"://[^:/@\s\"'<>]+@")
_OPTION = re.compile(
    r"(?i)([?&][^=&\s]*(?:password|passwd|pwd|token|secret|key|sig|signature|credential)=)[^&\s\"'<>]+"
)


def hidden(text: str) -> str:
    """Return the text with every password and token in its addresses replaced by ***."""
    text = _PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _NAME.sub(f"://{HIDDEN}@", text)
    return _OPTION.sub(rf"\1{HIDDEN}", text)


def in_address(text: str) -> bool:
    """Return whether an address contains a password or a token."""
    return hidden(text) != text


def hide_in_output() -> None:
    """Hide credentials in all later output of this process: messages, logs, warnings and tracebacks."""
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
