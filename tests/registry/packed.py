"""Versions as `pspnet register` packs them, but without a network."""

import json
from collections.abc import Sequence
from pathlib import Path

from pspnet.model.backbone.digest import digest
from pspnet.registry.seal import content_digest
from pspnet.registry.versions import Version, Versions


def packed(folder: Path, weights: str, others: Sequence[str] = ()) -> str:
    """Pack a bundle. Returns the bundle's digest. `others`: names of artifacts that are already in the folder."""
    bundle = folder / "artifacts/bundle"
    bundle.mkdir(parents=True)
    (bundle / "model.safetensors").write_text(weights)
    (folder / "code/pspnet").mkdir(parents=True)
    (folder / "code/pspnet/__init__.py").write_text("")
    artifacts = {name: {"path": f"artifacts/{name}"} for name in ("bundle", *others)}
    (folder / "MLmodel").write_text(json.dumps({"flavors": {"python_function": {"artifacts": artifacts}}}))
    return digest(bundle)


def add_packed(versions: Versions, folder: Path, weights: str = "weights") -> Version:
    bundle = packed(folder, weights)
    return versions.add(folder.resolve().as_uri(), "", bundle, content_digest(folder), {})
