import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pspnet.config.params import load_params
from pspnet.config.reading import read_yaml
from pspnet.errors import UserError
from pspnet.machine import terminal
from pspnet.machine.outputs import whole_file
from pspnet.registry.gate import Decision, Reason, Side
from pspnet.registry.lineage import lineage
from pspnet.registry.model_registry import ModelRegistry, open_registry
from pspnet.registry.provenance import collect, run_page, stage_runs
from pspnet.registry.records import ProposedMove
from pspnet.registry.seal import CONTENT, content_digest
from pspnet.registry.versions import Version
from tests.parameters import ROOT
from tests.registry.moves import make_move
from tests.registry.packed import add_packed, packed

WEIGHTS = "weights"
BUNDLE = "337cce73f9edf8b056a1f6c4ab06b98394352028e16d3fdcbed5e99401d0a4ee"  # the digest of a bundle with these weights
RAW = {"outs": [{"md5": "1234567890abcdef.dir", "size": 2_500_000, "nfiles": 7, "hash": "md5", "path": "raw"}]}
PIPELINE = {
    "stages": {
        "prepare": {"cmd": "prepare", "deps": ["data/raw", "scripts/split.py"], "outs": ["data/prepared"]},
        "pretrain": {"cmd": "pretrain", "deps": ["data/prepared"], "outs": ["models/backbone"]},
        "finetune": {"cmd": "finetune", "deps": ["models/backbone", "masks/extra"], "outs": ["models/segmenter"]},
    }
}
OUTS = {"prepare": "data/prepared", "pretrain": "models/backbone", "finetune": "models/segmenter"}
LOCK = {
    "stages": {stage: {"cmd": stage, "outs": [{"path": path, "md5": f"md5 of {path}"}]} for stage, path in OUTS.items()}
}
ACCEPTED = [
    {"stage": "finetune", "results": {"models/segmenter": "older"}, "why": "of older results"},
    {"stage": "finetune", "results": {"models/segmenter": "md5 of models/segmenter"}, "why": "a [bold]comment[/]"},
]
REPORT = {"mean_iou": 0.61, "split": "test", "fingerprint": "f" * 64, "images": 5, "class_iou": {"road": 0.61}}
DECISION = Decision(
    outcome="passed",
    reasons=(Reason("floor", True, "high enough"),),
    candidate=Side(BUNDLE, 1, 0.61, {"road": 0.61}, 5),
    champion=None,
    fingerprint="f" * 64,
    difference=None,
    interval=None,
    rules={},
    earlier_decisions=0,
    forced=False,
)


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], check=True)


def write(path: str, content: object) -> None:
    with whole_file(Path(path)) as partial:
        partial.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def registry(tmp_path: Path, sqlite: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRegistry]:
    """A project whose version 1 was registered from a changed tree and promoted, followed by version 2."""
    shutil.copyfile(sqlite / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    write(".gitignore", "/.pspnet/\n*.db\n/secret.txt\n")
    write("pspnet/old.py", "a = 1\nb = 2\n")
    write("params.yaml", (ROOT / "params.yaml").read_text())
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    write("pspnet/old.py", "a = 1\nb = 3\nc = 4\n")
    write("pspnet/new.py", "new = 1\n")
    write("scripts/split.py", "split = 1\n")  # the script is a dependency of a stage
    write("scripts/other.py", "other = 1\n")
    write("dvc.yaml", PIPELINE)
    write("dvc.lock", LOCK)
    write("data/raw.dvc", RAW)
    write("masks/extra.dvc", {"outs": [{**RAW["outs"][0], "path": "extra"}]})
    entries = [
        {"who": "ada", "when": "2026-01-02T03:04:05+00:00", "changed": ["pspnet/old.py"], **one} for one in ACCEPTED
    ]
    write("accepted.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    registry = open_registry(state, load_params(Path("params.yaml")))
    experiment = registry.client.create_experiment("stages")
    known = registry.client.create_run(experiment, tags={"pspnet.journal": "known"}).info.run_id
    machine = {"host": "lab", "gpu": "H200"}
    for stage, journal in {"prepare": "known", "pretrain": "unknown", "finetune": None}.items():
        record = {"run_id": "ab12" if journal else None, "journal": journal, "seconds": 12.3, "machine": machine}
        write(f"reports/runs/{stage}.json", json.dumps(record))
    first = add(registry, experiment)
    assert first.tags["run.prepare"] == known
    add(registry, experiment, weights="others")
    registry.decisions.record("question", DECISION, first)
    for version, why in ((1, "looks [red]good[/]"), (2, "better")):
        make_move(registry.audit, ProposedMove("promotion", version, why))
    yield registry


def add(registry: ModelRegistry, experiment: str, weights: str = WEIGHTS) -> Version:
    folder = Path(f"registered/{weights}")
    tags = collect(
        folder / "artifacts/provenance", [Path("data/raw.dvc"), Path("masks/extra.dvc")], Path("reports/runs")
    )
    tags |= stage_runs(registry.client, [experiment], Path("reports/runs"))
    tags |= {"fingerprint.train": "e" * 64, "fingerprint.test": "f" * 64, "test_mean_iou": "0.61", "pipeline": "cd34"}
    write(f"{folder}/artifacts/report/report.json", json.dumps(REPORT))
    bundle = packed(folder, weights, ("report", "provenance"))
    return registry.versions.add(folder.resolve().as_uri(), "", bundle, content_digest(folder), tags)


@pytest.fixture
def facts(registry: ModelRegistry, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lineage(registry, "1", as_json=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_raw_data_has_path_digest_file_count_and_size(facts: dict[str, Any]) -> None:
    raw = {"path": "data/raw", "md5": "1234567890abcdef.dir", "files": 7, "bytes": 2_500_000}
    assert facts["raw_data"] == [raw, {**raw, "path": "masks/extra"}]


def test_code_is_a_commit_and_the_changes_to_it(facts: dict[str, Any]) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert (facts["code"]["commit"], facts["code"]["dirty"]) == (head, True)
    assert facts["code"]["changes"] == [
        {"path": "pspnet/new.py", "added": 1, "removed": 0},
        {"path": "pspnet/old.py", "added": 2, "removed": 1},
        {"path": "scripts/split.py", "added": 1, "removed": 0},
    ]


def test_a_run_is_tracked_here_or_elsewhere_or_not_at_all(facts: dict[str, Any]) -> None:
    runs = facts["runs"]
    assert list(runs) == ["prepare", "pretrain", "finetune"]
    assert [(run["run_id"] is None, run["elsewhere"]) for run in runs.values()] == [
        (False, False),
        (False, True),
        (True, False),
    ]
    assert runs["pretrain"]["run_id"] == "ab12"
    assert {run["machine"]["gpu"] for run in runs.values()} == {"H200"}


def test_only_acceptances_of_these_results_count(facts: dict[str, Any]) -> None:
    assert [entry["why"] for entry in facts["accepted"]] == ["a [bold]comment[/]"]


def test_decisions_and_moves_are_those_of_this_version(facts: dict[str, Any], registry: ModelRegistry) -> None:
    assert [(one["outcome"], one["champion"]) for one in facts["decisions"]] == [("passed", "none")]
    assert [(move["number"], move["from_version"], move["to_version"]) for move in facts["moves"]] == [
        (1, 0, 1),
        (2, 1, 2),
    ]
    assert facts["moves"][0]["why"] == "looks [red]good[/]"


def test_params_and_packages_that_differ_from_todays_are_listed(
    registry: ModelRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    params = read_yaml(Path("params.yaml"))
    epochs, params["finetune"]["epochs"] = params["finetune"]["epochs"], 99
    del params["serve"]["max_images"]
    write("params.yaml", params)
    packages = next(registry.state.parent.glob(f"registered/{WEIGHTS}")) / "artifacts/provenance/packages.txt"
    installed = dict(line.split("==") for line in packages.read_text().split())
    assert {"python", "torch", "numpy"} <= installed.keys()
    then = {name: version for name, version in installed.items() if name != "torch"} | {"Torch": "1.0", "gone": "2"}
    packages.write_text("".join(f"{name}=={version}\n" for name, version in then.items()))
    registry.versions.set_tags(1, {CONTENT: content_digest(Path(f"registered/{WEIGHTS}"))})
    lineage(registry, "champion", as_json=True)
    assert json.loads(capsys.readouterr().out)["version"] == 2
    lineage(registry, "1", as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["params"]["differ_today"] == {
        "finetune.epochs": {"then": epochs, "today": 99},
        "serve.max_images": {"then": 16, "today": None},
    }
    assert facts["packages"]["differ_here"] == [
        {"name": "torch", "then": "1.0", "here": installed["torch"]},
        {"name": "gone", "then": "2", "here": None},
    ]


@pytest.mark.parametrize("width", [40, 100])
def test_the_tree_fits_the_terminal_and_shows_brackets_literally(
    registry: ModelRegistry, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "out", Console(width=width, highlight=False, soft_wrap=True))
    lineage(registry, "1", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).replace("│", " ").split())
    for words in (
        "pspnet-demo version 1",
        "data/raw 1234567890ab, 7 files, 2.5 MB",
        "test ffffffffffff",
        "pretrain (jigsaw): run ab12 on another tracking server, 12 s on lab on H200",
        "finetune: not tracked",
        "3 changed files (5 lines of diff)",
        "pspnet/old.py +2 -1",
        "the same as today's",
        "report: mIoU 0.610 on 5 images of test ffffffffffff",
        "finetune by ada, 2026-01-02",
        "a [bold]comment[/]",
        "1 promotion, none -> 1",
        "looks [red]good[/]",
        "passed: mIoU 0.610",
    ):
        assert words in text


def test_a_version_without_provenance_is_refused(registry: ModelRegistry) -> None:
    add_packed(registry.versions, Path("elsewhere"), "third")
    with pytest.raises(UserError, match="contains no provenance"):
        lineage(registry, "3", as_json=False)
    registry.versions.add(Path("nowhere").resolve().as_uri(), "", "e" * 64, "", {})
    with pytest.raises(UserError, match=r"version 4: cannot be downloaded from .*nowhere"):
        lineage(registry, "4", as_json=False)


def test_a_run_has_a_page_if_there_is_a_server(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    run = registry.client.get_run(registry.versions.get("1").tags["run.prepare"]).info
    assert run_page(registry.client, registry.state, run.run_id) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@mlflow.example.org/")
    page = f"https://mlflow.example.org/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    assert run_page(registry.client, registry.state, run.run_id) == page
    assert run_page(registry.client, registry.state, "0" * 32) is None  # the run was deleted for good


def test_new_files_that_no_stage_uses_are_kept_private(registry: ModelRegistry) -> None:
    (diff, _) = Path("registered").rglob("changes.diff")
    assert b"scripts/split.py" in diff.read_bytes()
    assert b"scripts/other.py" not in diff.read_bytes()
