"""Rules of the architecture that no single module could keep alone."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import grimp
import pytest
from pydantic import BaseModel

from pspnet.code import CODE, source_files
from pspnet.config.params import Params, load_params
from pspnet.config.reading import read_yaml
from pspnet.config.section import Section
from tests.parameters import ROOT

STAGES: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.yaml")["stages"]
GRAPH = grimp.build_graph("pspnet")
CANNOT_CHANGE_RESULTS = {
    "pspnet.credentials",
    "pspnet.errors",
    "pspnet.tracking",
    *GRAPH.find_descendants("pspnet.tracking"),
}


def files_of(module: str) -> set[str]:
    """The file of a module, and the template that bears its name."""
    path = ROOT / module.replace(".", "/")
    code = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    return {str(file.relative_to(ROOT)) for file in (code, path.with_suffix(".html.j2")) if file.exists()}


def sections(stage: str) -> list[str]:
    """The sections that the stage's function asks for."""
    parameters = inspect.signature(import_module(f"pspnet.stages.{stage}").run).parameters
    return [
        name for name, p in parameters.items() if isinstance(p.annotation, type) and issubclass(p.annotation, Section)
    ]


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")], ids=lambda path: path.name)
def test_params_are_complete_and_valid(path: Path) -> None:
    load_params(path)


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_in_code_are_the_modules_a_stage_imports(stage: str) -> None:
    module = f"pspnet.stages.{stage}"
    imported = {module, *GRAPH.find_upstream_modules(module)} - CANNOT_CHANGE_RESULTS
    expected = sorted(file for name in imported for file in files_of(name))
    declared = [path for path in STAGES[stage]["deps"] if path.startswith("pspnet/")]
    assert declared == expected, "dvc.yaml should list:\n" + "\n".join(f"      - {path}" for path in expected)


@pytest.mark.parametrize("stage", STAGES)
def test_the_digest_of_a_stage_covers_its_dependencies_in_code(stage: str) -> None:
    covered = {str(path.relative_to(ROOT)) for path in source_files(CODE[stage])}
    declared = {path for path in STAGES[stage]["deps"] if path.startswith("pspnet/")}
    assert declared - covered == set(), "CODE in pspnet/code.py should cover these"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_handed_only_its_own_params(stage: str) -> None:
    assert sections(stage) == STAGES[stage]["params"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_the_config_of_its_params(stage: str) -> None:
    imported = GRAPH.find_upstream_modules(f"pspnet.stages.{stage}")
    configs = {name.rpartition(".")[2] for name in imported if name.startswith("pspnet.config.")}
    assert configs - {"section", "reading"} == set(STAGES[stage]["params"])


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
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)
            if model is not Params:
                assert field.description, f"{model.__name__}.{name} does not say what it means"

    check(Params)


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
    """A bare GPU machine has torch and friends only."""
    code = """
import sys
import pspnet.stages.pretrain, pspnet.stages.finetune, pspnet.stages.evaluate
print([name for name in ("mlflow", "prefect", "dvc", "typer", "rich") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


@pytest.mark.e2e
def test_a_version_is_made_and_promoted_without_torch_in_that_process() -> None:
    """It takes a second to load: another process loads it meanwhile."""
    code = """
import sys
import pspnet.commands.new_version, pspnet.commands.promote, pspnet.registry.expected
print([name for name in ("torch", "mlflow") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
