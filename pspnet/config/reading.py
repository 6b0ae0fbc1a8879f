"""A YAML file as a typed model; every mistake in it reported together."""

import difflib
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pspnet.errors import Problem, UserError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-3 is a number, and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A file that holds one mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(Problem(str(path), "is missing", fix="Run this in the folder of your checkout.")) from None
    except UnicodeDecodeError:
        raise UserError(Problem(str(path), "is not UTF-8 text")) from None
    content = parse_value(text, str(path))
    if not isinstance(content, dict):
        raise UserError(Problem(str(path), f"holds {_name(content)}", "`key: value` lines"))
    return content


def parse_value(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(Problem(source, "is not valid YAML: " + " ".join(str(error).split()))) from None


def validate(model: type[Model], content: dict[str, Any], source: str) -> Model:
    """`content` as `model`, or one UserError with everything that is wrong with it."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(list(_problems(model, error, source))) from None


def _problems(model: type[BaseModel], error: ValidationError, source: str) -> Iterator[Problem]:
    details = error.errors(include_url=False)
    # A misspelt key is also a missing one; once is enough.
    told = {_closest(model, [*map(str, d["loc"])]) for d in details if d["type"] == "extra_forbidden"}
    for detail in details:
        path = [str(part) for part in detail["loc"]]
        declared, meaning = _declared(model, path)
        if detail["type"] == "extra_forbidden":
            guess = _closest(model, path)
            yield Problem(source, f"unknown key '{'.'.join(path)}'" + (f"; did you mean '{guess}'?" if guess else ""))
            continue
        # Past a declared field pydantic adds the entry, then words of its own: ('dataset', 'classes', 'sky', 'int').
        key = ".".join(path[: declared + 1])
        if key in told:
            continue
        told.add(key)
        if detail["type"] == "missing":
            yield Problem(source, f"'{key}' is missing", fix=meaning)
        else:
            found = "does not fit together" if _is_whole_section(detail) else f"is {_name(detail['input'])}"
            yield Problem(source, f"{key} {found}", _reason(detail["msg"]))


def _is_whole_section(detail: ErrorDetails) -> bool:
    """A rule that several keys broke together."""
    return detail["type"] == "value_error" and isinstance(detail["input"], dict)


def _reason(message: str) -> str:
    """pydantic's sentence, without what is said already."""
    for start in ("Input should be ", "Value error, "):
        message = message.removeprefix(start)
    message = message.replace("a valid integer", "a whole number").replace("a valid number", "a number")
    message = message.replace("a valid string", "text").replace("a valid list", "a list")
    return re.sub("a valid dictionary( or instance of [A-Za-z]+)?", "`key: value` lines", message)


def _name(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()} (yes or no)"
        case str():
            return f"'{value}' (text)"
        case list():
            return "a list"
        case dict():
            return "`key: value` lines"
        case _:
            return str(value)


def _declared(model: type[BaseModel], path: list[str]) -> tuple[int, str]:
    """How many leading parts of `path` are declared fields, and what the last of them means."""
    meaning = ""
    fields = model.model_fields
    for depth, part in enumerate(path):
        if part not in fields:
            return depth, meaning
        meaning = " ".join((fields[part].description or "").split())
        annotation = fields[part].annotation
        fields = annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else {}
    return len(path), meaning


def _closest(model: type[BaseModel], path: list[str]) -> str | None:
    """The known key most like an unknown one: that of the same name, else in its own section, else anywhere."""
    known = list(_keys(model))
    same_name = [key for key in known if key.rpartition(".")[2] == path[-1]]
    if len(same_name) == 1:
        return same_name[0]
    unknown = ".".join(path)
    siblings = [key for key in known if key.rpartition(".")[0] == ".".join(path[:-1])]
    for candidates in (siblings, known):
        if found := difflib.get_close_matches(unknown, candidates, n=1, cutoff=0.75):
            return found[0]
    return None


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
