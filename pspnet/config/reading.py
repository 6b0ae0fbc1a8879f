"""Read a YAML file as a typed model, and report all mistakes in it together."""

import difflib
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pspnet.errors import Problem, UserError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Load YAML as DVC does: 1e-3 is a number, and a key can appear only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key '{key}' appears twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, or raise a UserError that names the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(Problem(str(path), "is missing", fix="Run this in your checkout.")) from None
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
    """Parse `content` as `model`, or raise a single UserError that lists every mistake in it."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(list(_problems(model, error, source))) from None


def _problems(model: type[BaseModel], error: ValidationError, source: str) -> Iterator[Problem]:
    details = [(detail, _place(model, detail["loc"])) for detail in error.errors(include_url=False)]
    unknown = {
        place.name: _unknown(model, place.path, detail["input"])
        for detail, place in details
        if detail["type"] == "extra_forbidden"
    }
    # A misspelled key is also a missing key, so report it only once.
    reported = {guess for guesses in unknown.values() for guess in guesses.values()}
    for detail, place in details:
        if detail["type"] == "extra_forbidden":
            for name, guess in unknown[place.name].items():
                yield Problem(source, f"unknown key '{name}'{_advice(model, name, guess, place.kind)}")
            continue
        # After a declared field, pydantic adds the entry, then its own words: ('dataset', 'classes', 'sky', 'int').
        key = ".".join(place.path[: place.declared + 1])
        if key in reported:
            continue
        reported.add(key)
        if detail["type"] == "missing":
            yield Problem(source, f"'{key}' is missing", fix=place.meaning)
        elif place.kinds:
            yield _no_kind(detail, place, key, source)
        else:
            found = "does not fit together" if _is_whole_section(detail) else f"is {_name(detail['input'])}"
            keys = f": {', '.join(place.keys)}" if detail["type"] == "model_type" and place.keys else ""
            yield Problem(source, f"{key} {found}", _reason(detail["msg"]) + keys)


def _no_kind(detail: ErrorDetails, place: "_Place", key: str, source: str) -> Problem:
    """Return the problem with a section that has several kinds but does not say which one it is."""
    *others, last = (f"'{kind}'" for kind in place.kinds)
    kinds = f"{', '.join(others)} or {last}"
    if detail["type"] == "union_tag_not_found":
        return Problem(source, f"'{key}.{place.discriminator}' is missing", kinds)
    if detail["type"] == "union_tag_invalid":
        return Problem(source, f"{key}.{place.discriminator} is {_name(detail['ctx']['tag'])}", kinds)
    found = detail["input"]
    own = [name for name in _fields(place.kinds.get(str(found))) if name != place.discriminator]
    keys = ", ".join([f"{place.discriminator}: {found if str(found) in place.kinds else kinds}", *own])
    return Problem(source, f"{key} is {_name(found)}", f"`key: value` lines: {keys}")


def _unknown(model: type[BaseModel], path: list[str], value: Any) -> dict[str, str | None]:
    """Map each unknown key to the closest known key. If a section is unknown but its keys resemble known keys, they are
    matched one by one.
    """
    guess = _closest(model, path)
    if guess is None and isinstance(value, dict):
        parts = [_unknown(model, [*path, str(key)], inner) for key, inner in value.items()]
        inside = {name: closest for part in parts for name, closest in part.items()}
        if any(inside.values()):
            return inside
    return {".".join(path): guess}


def _advice(model: type[BaseModel], name: str, guess: str | None, kind: str) -> str:
    if guess is None:
        return ""
    kinds = [one for key, one in _keys(model) if key == guess]
    other = "" if kind in kinds or not all(kinds) else " or ".join(kinds)
    if name == guess:
        return f"; it belongs to {other}"
    return f"; did you mean '{guess}'" + (f", with {other}?" if other else "?")


def _is_whole_section(detail: ErrorDetails) -> bool:
    """Return whether several keys break a rule together."""
    return detail["type"] == "value_error" and isinstance(detail["input"], dict)


def _reason(message: str) -> str:
    """Return pydantic's message, reworded, without the parts that a Problem already has."""
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


class _Place(NamedTuple):
    path: list[str]  # keys as they appear in the file
    declared: int  # the number of leading keys that are declared fields
    meaning: str  # description of the last declared field, and an example
    keys: list[str]  # keys of the section in the last declared field
    discriminator: str  # the key that names that section's kind, if it has several kinds
    kinds: dict[str, type[BaseModel]]  # the possible sections, unless the file says which
    kind: str  # the kind given in the file, as in `layout: voc`

    @property
    def name(self) -> str:
        return ".".join(self.path)


def _place(model: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    path: list[str] = []
    declared, meaning, discriminator, kind = 0, "", "", ""
    section: type[BaseModel] | None = model
    kinds: dict[str, type[BaseModel]] = {}
    for part in map(str, location):
        if kinds:  # pydantic inserts the section's kind here
            section, kinds, kind = kinds[part], {}, f"{discriminator}: {part}"
            continue
        path.append(part)
        field = section.model_fields.get(part) if section and declared == len(path) - 1 else None
        if field:
            declared, meaning = declared + 1, _meaning(field)
            discriminator, kinds = _kinds(field)
            section = _section(field.annotation)
    return _Place(path, declared, meaning, _fields(section), discriminator, kinds, kind)


def _meaning(field: FieldInfo) -> str:
    words = (field.description or "").split()
    return " ".join(words + [f"For example: {example}" for example in field.examples or []])


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _fields(section: type[BaseModel] | None) -> list[str]:
    return list(section.model_fields) if section else []


def _kinds(field: FieldInfo) -> tuple[str, dict[str, type[BaseModel]]]:
    """Return the key that names the kind of a section, and the possible sections by kind."""
    if not isinstance(field.discriminator, str):
        return "", {}
    sections = filter(None, map(_section, get_args(field.annotation)))
    return field.discriminator, {get_args(one.model_fields[field.discriminator].annotation)[0]: one for one in sections}


def _closest(model: type[BaseModel], path: list[str]) -> str | None:
    """Return the known key closest to an unknown key: first by the same name, then by the same section."""
    known = list(dict.fromkeys(key for key, _ in _keys(model)))
    same_name = [key for key in known if key.rpartition(".")[2] == path[-1]]
    deeper = [key for key in same_name if key.startswith(".".join([*path[:-1], ""]))]
    for candidates in (same_name, deeper):
        if len(candidates) == 1:
            return candidates[0]
    section = ".".join(path[:-1])
    inside = [key for key in known if (key.startswith(f"{section}.") if section else "." not in key)]
    by_name = {key.rpartition(".")[2]: key for key in inside}
    if found := difflib.get_close_matches(path[-1], by_name, n=1, cutoff=0.75):
        return by_name[found[0]]
    return next(iter(difflib.get_close_matches(".".join(path), known, n=1, cutoff=0.75)), None)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every known key, with a kind of section that has it if other kinds lack it: (dataset.source.splits,
    layout: voc).
    """
    for name, field in model.model_fields.items():
        yield prefix + name, ""
        if section := _section(field.annotation):
            yield from _keys(section, f"{prefix}{name}.")
        discriminator, kinds = _kinds(field)
        for own, one in kinds.items():
            for key, _ in _keys(one):
                everywhere = all(key.partition(".")[0] in _fields(other) for other in kinds.values())
                yield f"{prefix}{name}.{key}", "" if everywhere else f"{discriminator}: {own}"
