"""Creates the sections of params.yaml that fit the folder."""

from typing import Any, get_args

import yaml

from pspnet.config.dataset import DatasetParams
from pspnet.config.reading import validate

SOURCES = {
    get_args(kind.model_fields["layout"].annotation)[0]: kind
    for kind in get_args(DatasetParams.model_fields["source"].annotation)
}


def source_section(layout: str, known: dict[str, Any]) -> dict[str, Any]:
    """The section `dataset.source`. Of the known fields, it contains those that the layout has."""
    return {"layout": layout} | {name: known[name] for name in SOURCES[layout].model_fields if name in known}


def dataset_params(section: dict[str, Any]) -> DatasetParams:
    return validate(DatasetParams, section, "the proposed section")


LIST = "tag:yaml.org,2002:seq"


class _Dumper(yaml.SafeDumper):
    """Writes YAML with each list on one line, as in the recipes."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence(LIST, data, flow_style=True))


def as_yaml(dataset: dict[str, Any], prepare: dict[str, tuple[Any, str]]) -> str:
    """The sections as YAML. `prepare`: key -> (value, reason); the reason becomes a comment.

    A key `problems.KIND` goes into the section `prepare.problems`.
    """
    lines = [_dumped({"dataset": dataset}).rstrip()]
    if prepare:
        lines += ["", "prepare:"]
        for name, (value, reason) in prepare.items():
            section, _, key = name.rpartition(".")
            lines += [f"  {section}:"] if section else []
            indent = "    " if section else "  "
            lines.append(f"{indent}{_dumped({key: value}).strip()}  # {' '.join(reason.split())}")
    return "\n".join(lines) + "\n"


def _dumped(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
