"""Architecture rules that span several modules."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import grimp
import pytest
from pydantic import BaseModel

from pspnet.config.params import Params, load_params
from pspnet.config.reading import read_yaml
from pspnet.config.section import Section
from pspnet.machine.code import CODE
from tests.parameters import ROOT

STAGES: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.yaml")["stages"]
GRAPH = grimp.build_graph("pspnet")
CANNOT_CHANGE_RESULTS = ("errors", "machine", "printable", "tracking", *(f"config.{name}" for name in (
    "backbone", "optimizer", "reading", "runtime", "section")))  # fmt: skip


def holds(part: str, module: str) -> bool:
    """Return whether the part contains the module. `part` is written as in `pspnet.machine.code.CODE`, or with dots."""
    room = "pspnet." + part.removesuffix(".py").replace("/", ".")
    return module == room or module.startswith(f"{room}.")


def sections(stage: str) -> list[str]:
    """Return the names of the sections that the stage's function accepts."""
    parameters = inspect.signature(import_module(f"pspnet.stages.{stage}").run).parameters
    return [
        name for name, p in parameters.items() if isinstance(p.annotation, type) and issubclass(p.annotation, Section)
    ]


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")], ids=lambda path: path.name)
def test_params_are_complete_and_valid(path: Path) -> None:
    load_params(path)


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_of_a_stage_is_what_it_imports_and_nothing_else(stage: str) -> None:
    module = f"pspnet.stages.{stage}"
    imported = {module, *GRAPH.find_upstream_modules(module)}
    imported -= {name for name in imported for part in CANNOT_CHANGE_RESULTS if holds(part, name)}
    assert sorted(name for name in imported if not any(holds(part, name) for part in CODE[stage])) == []
    assert [part for part in CODE[stage] if not any(holds(part, name) for name in imported)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_depends_on_the_code_of_a_stage(stage: str) -> None:
    assert [path for path in STAGES[stage]["deps"] if path.startswith("pspnet/")] == [
        f"pspnet/{part}" for part in CODE[stage]
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_handed_only_its_own_params(stage: str) -> None:
    assert sections(stage) == STAGES[stage]["params"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_the_config_of_its_params(stage: str) -> None:
    imported = GRAPH.find_upstream_modules(f"pspnet.stages.{stage}")
    configs = {name.rpartition(".")[2] for name in imported if name.startswith("pspnet.config.")}
    assert configs - {"optimizer", "reading", "section"} == set(STAGES[stage]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_earlier_stages_write(stage: str) -> None:
    written = {"data/raw", "data/weights"}
    for name, other in STAGES.items():
        if name == stage:
            break
        written |= outs(other)
    data = {path for path in STAGES[stage]["deps"] if not path.startswith("pspnet/")}
    assert data <= written
    words = STAGES[stage]["cmd"].split()
    assert words[:2] == ["pspnet", stage]
    assert data | outs(STAGES[stage]) == {word for word in words[2:] if not word.startswith("--")}


@pytest.mark.parametrize("stage", STAGES)
def test_every_result_is_cached_and_every_stage_can_be_scheduled(stage: str) -> None:
    for kind in ("outs", "plots", "metrics"):
        for entry in STAGES[stage].get(kind, []):
            settings = next(iter(entry.values())) if isinstance(entry, dict) else {}
            assert settings.get("cache", True)
            assert not settings.get("persist", False)
    assert set(STAGES[stage]["meta"]) - {"parts"} == {"pool", "timeout", "retries"}
    assert STAGES[stage]["meta"]["pool"] in {"cpu", "gpu"}


def outs(stage: dict[str, Any]) -> set[str]:
    entries = [entry for kind in ("outs", "plots", "metrics") for entry in stage.get(kind, [])]
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def test_no_parameter_has_a_default_and_each_says_what_it_means() -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.is_required(), f"{model.__name__}.{name} has a default"
            for section in (field.annotation, *get_args(field.annotation)):
                if isinstance(section, type) and issubclass(section, BaseModel):
                    check(section)
            if model is not Params and name not in ("kind", "layout"):  # the section's own description explains these
                assert field.description, f"{model.__name__}.{name} does not say what it means"

    check(Params)


def test_flows_match_no_text_that_our_own_commands_print() -> None:
    """What our commands report is in the event log, so flows need not match any text."""
    used_for = {
        "flows/dag.py": "durations in dvc.yaml",
        "flows/dvc_text.py": "DVC's words",
        "flows/flow_attempt.py": "log messages of Prefect's engine",
        "flows/markdown.py": "characters with a meaning in Markdown",
        "flows/progress.py": "keys of Prefect's artifacts",
    }
    modules = [
        path for path in (ROOT / "flows").rglob("*.py") if re.search(r"^(import|from) re\b", path.read_text(), re.M)
    ]
    assert sorted(path.relative_to(ROOT).as_posix() for path in modules) == sorted(used_for)


def test_only_failures_read_what_a_command_printed() -> None:
    """The only exception is `pspnet doctor`, whose output is the message for the user."""
    modules = [path for path in (ROOT / "flows").rglob("*.py") if re.search(r"\.output\b", path.read_text())]
    assert sorted(path.name for path in modules) == ["failure.py", "retrain.py"]


def test_every_link_in_the_documents_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "data/README.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_test_that_a_page_names_exists() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for path, name in re.findall(r"(tests/\S+\.py)::(\w+)", page.read_text()):
            assert f"def {name}(" in (ROOT / path).read_text(), f"{page.name} names {path}::{name}"


@pytest.mark.e2e
def test_training_core_imports_no_engine_even_indirectly() -> None:
    """A bare GPU machine has only torch and related packages."""
    code = """
import sys
import pspnet.stages.pretrain, pspnet.stages.finetune, pspnet.stages.evaluate
print([name for name in ("mlflow", "prefect", "dvc", "typer", "rich") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


@pytest.mark.e2e
def test_registering_and_promoting_load_no_torch() -> None:
    """Loading torch takes a second, and another process is already loading torch at the same time."""
    code = """
import sys
import pspnet.registry.new_version, pspnet.registry.promotion, pspnet.registry.expected
print([name for name in ("torch", "mlflow") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
