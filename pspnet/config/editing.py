"""Replace values in the text of a params file. Everything else is kept: order, other values, comments."""

import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from pspnet.config.reading import parse_value
from pspnet.errors import Problem, UserError

NO_WRAPPING = 4096  # characters


def edited(text: str, values: Mapping[str, Any], source: str, comments: Mapping[str, str] | None = None) -> str:
    """Return `text` with new values. `values` maps keys such as `finetune.optimizer.learning_rate` to values, and
    `comments` maps keys of scalars to the comments that replace those on their lines.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, NO_WRAPPING
    content = yaml.load(text)
    for path, value in values.items():
        section, key = _place(content, path, source)
        section[key] = _in_style(value)
    for path, comment in (comments or {}).items():
        section, key = _place(content, path, source)
        _set_comment(section, key, comment)
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def _place(content: Any, path: str, source: str) -> tuple[Any, str]:
    *parents, key = path.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, CommentedMap())
        if not isinstance(section, dict):
            raise UserError(Problem(source, f"'{path}' is not a parameter: '{parent}' has no keys"))
    return section, key


def _in_style(value: Any) -> Any:
    """Write mappings on separate lines and lists within a line, as in the recipes, and quote words such as `no`."""
    if isinstance(value, Mapping):
        return CommentedMap({_in_style(key): _in_style(inner) for key, inner in value.items()})
    if isinstance(value, str) and _reads_as_something_else(value):
        return SingleQuotedScalarString(value)
    if isinstance(value, list):
        line = CommentedSeq(map(_in_style, value))
        line.fa.set_flow_style()
        return line
    return value


def _reads_as_something_else(word: str) -> bool:
    """ruamel writes YAML 1.2, where `no` is a word, but we read YAML 1.1, where it is false."""
    return bool(re.fullmatch(r"[\w.:~+-]*", word)) and parse_value(word, "a value") != word


def _set_comment(section: Any, key: str, comment: str) -> None:
    """Replace the comment on the key's line, but not the blank lines and comments that follow, before the next key."""
    tokens = section.ca.items.setdefault(key, [None, None, None, None])
    following = tokens[2].value.partition("\n")[2] if tokens[2] else ""
    tokens[2] = CommentToken(f"# {comment}\n{following}", CommentMark(0), None)
