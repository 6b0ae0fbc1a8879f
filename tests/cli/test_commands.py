"""Runs the commands as a user would."""

import gc
import inspect
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from pspnet.cli.app import STAGES, app
from tests.command import pspnet, pspnet_process
from tests.files import contents
from tests.parameters import ROOT
from tests.raw.rawdata import encoded, noise, write

START = ROOT / "recipes/start.yaml"
GROUP = typer.main.get_group(app)


def commands() -> dict[str, Any]:
    """Return the commands by name, without the groups, which do nothing on their own."""
    found: dict[str, Any] = dict(GROUP.commands)
    for name, command in GROUP.commands.items():
        found |= {f"{name} {own}": one for own, one in getattr(command, "commands", {}).items()}
    return {name: one for name, one in found.items() if getattr(one, "invoke_without_command", True)}


COMMANDS = commands()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def test_use_replaces_params_yaml_and_shows_the_changes(project: Path) -> None:
    write(project / "params.yaml", (ROOT / "params.yaml").read_text().replace("^(street[0-9]+)", "^([a-z]+)"))
    before = (project / "params.yaml").read_bytes()
    done = pspnet("use", START, cwd=project)
    assert (done.stderr, done.returncode) == ("", 0)
    assert (project / "params.yaml").read_bytes() == START.read_bytes()
    assert (project / ".pspnet/params.before.yaml").read_bytes() == before
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    assert ["dataset.group_pattern", "^([a-z]+)", "(.*)"] in rows
    assert ["dataset.classes.object", "", "1"] in rows
    assert ["registry.model", "pspnet-demo", "pspnet-start"] in rows
    assert not any(row[0].startswith("runtime.seed") for row in rows if row)
    assert "The previous params are in .pspnet/params.before.yaml." in done.stdout


def test_using_the_current_recipe_changes_nothing(project: Path) -> None:
    done = pspnet("use", ROOT / "params.yaml", cwd=project)
    assert done.stdout == f"params.yaml already equals {ROOT / 'params.yaml'}.\n"
    assert list(contents(project)) == ["params.yaml"]


def test_use_creates_a_missing_params_yaml(tmp_path: Path) -> None:
    done = pspnet("use", START, cwd=tmp_path)
    assert done.returncode == 0
    assert contents(tmp_path) == {"params.yaml": START.read_bytes()}


def test_use_refuses_an_invalid_recipe_and_leaves_params_yaml_alone(project: Path) -> None:
    write(project / "mine.yaml", START.read_text().replace("  depth: 50", "  depth: 51"))
    before = contents(project)
    done = pspnet("use", "mine.yaml", cwd=project)
    assert done.stderr == "mine.yaml: backbone.depth is 51; expected 18, 34, 50, 101 or 152\n"
    assert (done.stdout, done.returncode) == ("", 1)
    assert contents(project) == before


def test_synthesize_does_not_overwrite_synthetic_images(tmp_path: Path) -> None:
    first = pspnet("synthesize", "raw", "--images", "3", "--labeled", "2", cwd=tmp_path)
    assert (first.stdout, first.stderr, first.returncode) == ("", "", 0)
    drawn = contents(tmp_path)
    assert len([name for name in drawn if name.endswith(".png")]) == 5
    again = pspnet("synthesize", "raw", "--images", "9", "--labeled", "9", "--seed", "1", cwd=tmp_path)
    assert again.stderr == "raw already contains synthetic images. Remove the folder to draw new ones.\n"
    assert again.returncode == 0
    assert contents(tmp_path) == drawn


def test_synthesize_never_touches_other_data(tmp_path: Path) -> None:
    write(tmp_path / "raw/images/mine.png", encoded(noise(2, 2)))
    before = contents(tmp_path)
    done = pspnet("synthesize", "raw", cwd=tmp_path)
    assert done.stderr == (
        "raw: contains data that is not synthetic; expected an empty folder or none. "
        "Move it elsewhere. To use your own data: pspnet data inspect data/raw --write, pspnet plan, make retrain.\n"
    )
    assert done.returncode == 1
    assert contents(tmp_path) == before


@pytest.mark.e2e  # this case starts DVC
def test_doctor_says_what_to_do_about_missing_data(project: Path) -> None:
    done = pspnet("doctor", cwd=project)
    assert done.returncode == 1
    rows = {cells[0]: cells[1:] for cells in map(cells_of, done.stdout.splitlines())}
    assert rows["params"] == ["good", "complete; the model is pspnet-demo", ""]
    assert rows["raw data"] == [
        "problem",
        "data/raw is empty.",
        "`make demo` draws demo data; for your own data, put images/ and masks/ there.",
    ]
    assert {"git", "DVC", "disk", "device", "versions"} <= {name.split()[0] for name in rows if name}


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")]


def test_quick_doctor_refuses_the_demo_params_for_your_own_data(project: Path) -> None:
    write(project / "data/raw/images/mine.png", encoded(noise(2, 2)))
    done = pspnet("doctor", "--quick", cwd=project)
    assert done.stderr == (
        "data/raw contains your own data, but params.yaml is still the demo's.\n"
        "`pspnet data inspect data/raw --write`, `pspnet plan --minutes 30`, then `make retrain`.\n"
    )
    assert (done.stdout, done.returncode) == ("", 1)


def test_quick_doctor_is_silent_if_all_is_well(project: Path) -> None:
    pspnet("synthesize", "data/raw", "--images", "1", "--labeled", "1", cwd=project)
    done = pspnet("doctor", "--quick", cwd=project)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_quick_doctor_reports_a_mistake_in_params_yaml(project: Path) -> None:
    write(project / "data/raw/images/mine.png", encoded(noise(2, 2)))
    write(project / "params.yaml", START.read_text().replace("  seed: 0", "  seed: -1"))
    done = pspnet("doctor", "--quick", cwd=project)
    assert done.stderr == "params.yaml: runtime.seed is -1; expected greater than or equal to 0\n"
    assert done.returncode == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_that_the_command_accepts(name: str) -> None:
    text = " ".join(inspect.cleandoc(COMMANDS[name].help or "").split())
    words = shlex.split(text.partition("Example: ")[2])
    assert " ".join(words).startswith(f"pspnet {name}")
    context = COMMANDS[name].make_context(name, words[1 + len(name.split()) :])
    if COMMANDS[name].rich_help_panel == STAGES:
        assert None not in context.params.values(), "the example does not show every option that dvc.yaml uses"


@pytest.mark.e2e
def test_help_loads_no_heavy_package(tmp_path: Path) -> None:
    """Loading torch, MLflow or Prefect takes seconds."""
    done = pspnet_process("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert all(f" {name} " in done.stdout for name, command in GROUP.commands.items() if not command.hidden)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pspnet.cli" in loaded
    assert not loaded & {"torch", "mlflow", "prefect", "dvc", "pandas", "pyarrow", "numpy", "pydantic"}


def test_commands_collect_garbage_less_often_than_python_does(tmp_path: Path) -> None:
    """Each collection would scan a million objects from MLflow and torch."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        assert pspnet("--help", cwd=tmp_path).returncode == 0
        assert gc.get_threshold()[0] >= 10_000
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("arguments", [["train"], ["prepare", "--raw", "x", "--into", "y"], ["prepare"]], ids=" ".join)
def test_an_invalid_command_line_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    done = pspnet(*arguments, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("", 2)
    assert "Usage: pspnet" in done.stderr
    assert not any(tmp_path.iterdir())


WHOLE = """schema: '2.0'
stages:
  prepare:
    cmd: pspnet prepare
    outs:
    - path: data/prepared
      md5: 0a1b.dir
"""


@pytest.mark.parametrize("cut_short", ["", "schema: '2.", WHOLE[:30], WHOLE[:38]])
def test_doctor_moves_a_truncated_dvc_lock_aside(project: Path, cut_short: str) -> None:
    (project / ".dvc/tmp").mkdir(parents=True)
    lock = write(project / "dvc.lock", cut_short)
    done = pspnet("doctor", "--quick", cwd=project)
    assert "was truncated when DVC was killed" in done.stderr
    assert not lock.exists()
    assert (project / ".dvc/tmp/dvc.lock").read_text() == cut_short


@pytest.mark.parametrize("content", [WHOLE, f"<<<<<<< HEAD\n{WHOLE}"], ids=["whole", "merged by git"])
def test_doctor_keeps_a_complete_dvc_lock(project: Path, content: str) -> None:
    lock = write(project / "dvc.lock", content)
    assert "truncated" not in pspnet("doctor", "--quick", cwd=project).stderr
    assert lock.read_text() == content


def test_doctor_removes_a_truncated_rwlock(project: Path) -> None:
    lock = write(project / ".dvc/tmp/rwlock", "")
    done = pspnet("doctor", "--quick", cwd=project)
    assert "was truncated when DVC was killed" in done.stderr
    assert not lock.exists()
    write(lock, '{"data": {"read": []}}')
    assert "truncated" not in pspnet("doctor", "--quick", cwd=project).stderr
    assert lock.exists()
