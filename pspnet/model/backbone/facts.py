"""The JSON file of facts that accompanies the weights of a bundle or a backbone. It does not need torch."""

import json
from pathlib import Path
from typing import Any

from pspnet.errors import Problem, UserError

BUNDLE = "model.json"
BUNDLE_FORMAT = 2


def write_json(content: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, format_version: int) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "Create it with `dvc repro`, or give another folder."
        raise UserError(Problem(str(path), "is missing", "the output of a stage", fix)) from None
    except (OSError, ValueError) as error:
        raise UserError(Problem(str(path), f"cannot be read ({error})")) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != format_version:
        raise UserError(
            Problem(
                str(path),
                f"has format version {version}",
                f"version {format_version}",
                "Create it again with this version of pspnet, or use the version that created it.",
            )
        )
    return dict(content)


def bundle_facts(folder: Path) -> dict[str, Any]:
    return read_json(folder / BUNDLE, BUNDLE_FORMAT)
