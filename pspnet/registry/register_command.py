"""`pspnet register`: register the results of the stages, promote the version if asked to, then print what happened.

This module imports nothing heavy: while this process loads the rest, the process that will try out the new version
loads torch.
"""

import json
from contextlib import nullcontext
from pathlib import Path

from pspnet.machine import events, terminal
from pspnet.model.backbone.digest import digest
from pspnet.registry.versions import has_folder
from pspnet.serving.client import warm_process


def register(
    state: Path,
    params: Path,
    bundle: Path,
    report: Path,
    prepared: Path,
    records: Path,
    *,
    promote: bool,
    as_json: bool,
) -> None:
    will_ask = promote and bundle.is_dir() and not has_folder(state, digest(bundle))
    with warm_process() if will_ask else nullcontext() as call:
        from pspnet.config.params import load_params
        from pspnet.registry import promotion, registration, tables
        from pspnet.registry.evidence import LocalData
        from pspnet.registry.model_registry import open_registry

        own, results = load_params(params), registration.Results(bundle, report, prepared, records)
        examples = registration.examples_of(results, own, call)
        registry = open_registry(state, own)
        version, new = registration.register(registry, results, examples)
        done = promotion.promote(registry, version, LocalData(prepared, report)) if promote else None
    terminal.out.stderr = as_json
    registration.show(registry, version, new)
    if done:
        promotion.show(registry, done)
        tables.overview(registry)
    if as_json or events.log():
        facts = registration.facts(registry, results, version, new, done)
        events.tell("result", **facts)
        if as_json:
            print(json.dumps(facts))  # noqa: T201
