"""The sections of params.yaml that fit what was found."""

from typing import Any, get_args

import yaml

from pspnet.config.dataset import DatasetParams
from pspnet.config.reading import validate

SOURCES = {
    get_args(kind.model_fields["layout"].annotation)[0]: kind
    for kind in get_args(DatasetParams.model_fields["source"].annotation)
}


def source_section(layout: str, known: dict[str, Any]) -> dict[str, Any]:
    """Of what is known, the fields that this layout has."""
    return {"layout": layout} | {name: known[name] for name in SOURCES[layout].model_fields if name in known}


def dataset_params(section: dict[str, Any]) -> DatasetParams:
    return validate(DatasetParams, section, "the section found for it")


LIST = "tag:yaml.org,2002:seq"


class _Dumper(yaml.SafeDumper):
    """Lists in one line, as people write them here."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence(LIST, data, flow_style=True))


def as_yaml(dataset: dict[str, Any], prepare: dict[str, tuple[Any, str]]) -> str:
    """`prepare`: key -> (value, why)"""
    lines = [_dumped({"dataset": dataset}).rstrip()]
    if prepare:
        lines += ["", "prepare:"]
        for key, (value, why) in prepare.items():
            lines.append(f"  {_dumped({key: value}).strip()}  # {' '.join(why.split())}")
    return "\n".join(lines) + "\n"


def _dumped(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
