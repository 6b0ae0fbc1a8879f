"""The whole pipeline with real DVC, on forty tiny images."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from pspnet.config.reading import read_yaml
from tests.e2e.pipeline import STEPS, SYNTHESIZE, clone, digests, ran, reproduce, run, write_params

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("warm"), pytest.mark.timeout(900)]


def test_the_report_is_written(finished: Path) -> None:
    assert (finished / "reports/evaluation/report.html").stat().st_size > 10_000
    metrics = json.loads((finished / "reports/metrics.json").read_text())
    assert 0 < metrics["mean_iou"] < 1
    assert run(finished, "dvc", "metrics", "show", "--json")


def test_nothing_runs_if_nothing_has_changed(finished: Path) -> None:
    assert reproduce(finished) == []
    assert json.loads(run(finished, "dvc", "status", "--json")) == {}


def test_git_sees_only_what_a_user_commits(finished: Path) -> None:
    run(finished, "git", "check-ignore", "data/raw", "data/prepared", "models", "reports", ".pspnet")
    status = run(finished, "git", "status", "--porcelain").split()
    assert set(status) == {"??", "data/raw.dvc", "dvc.lock"}


def test_a_clone_in_a_different_folder_gets_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    other = clone(finished, tmp_path / "another/deeper")
    run(other, *SYNTHESIZE)
    assert reproduce(other) == list(STEPS)
    assert digests(other) == digests(finished)
    assert len(digests(other)) == 8


def test_results_travel_through_the_run_cache(finished: Path, tmp_path: Path) -> None:
    """A second machine that shares only the remote runs no stages and needs no dvc.lock."""
    run(finished, "dvc", "push", "--run-cache", "--quiet")
    other = clone(finished, tmp_path / "second/clone")
    run(other, *SYNTHESIZE)
    run(other, "dvc", "add", "--quiet", "data/raw")
    run(other, "dvc", "remote", "modify", "--local", "folder", "url", str(finished / ".pspnet/dvc-remote"))
    output = run(other, "dvc", "repro", "--pull")
    assert ran(output) == []
    assert digests(other) == digests(finished)
    assert not (other / ".pspnet/checkpoints").exists()


class TestWhatAChangeRuns:
    def test_the_learning_rate_of_finetune_does_not_change_the_backbone(self, finished: Path) -> None:
        """When the old rate is restored, all results come from the cache."""
        before = digests(finished)
        write_params(finished, finetune__optimizer__learning_rate=0.001)
        assert reproduce(finished) == ["finetune", "evaluate"]
        assert digests(finished) != before
        write_params(finished, finetune__optimizer__learning_rate=0.004)
        assert reproduce(finished) == []
        assert digests(finished) == before

    def test_a_comment_in_the_losses_runs_neither_prepare_nor_pretrain(self, finished: Path) -> None:
        with (finished / "pspnet/losses/terms.py").open("a") as file:
            file.write("# a comment\n")
        assert reproduce(finished) == ["finetune"]  # the bundle is the same, so evaluate has nothing to do

    def test_a_comment_can_be_accepted(self, finished: Path) -> None:
        with (finished / "pspnet/model/network.py").open("a") as file:
            file.write("# another comment\n")
        for stage in ("finetune", "evaluate"):
            run(finished, "pspnet", "accept", stage, "--why", "a comment")
        assert reproduce(finished) == []
        entries = [json.loads(line) for line in (finished / "accepted.jsonl").read_text().splitlines()]
        assert [(entry["stage"], entry["changed"]) for entry in entries] == [
            ("finetune", ["pspnet/model"]),
            ("evaluate", ["pspnet/model"]),
        ]

    def test_pretraining_can_be_skipped(self, finished: Path) -> None:
        write_params(finished, pretrain__method={"kind": "none"})
        assert reproduce(finished) == ["pretrain", "finetune", "evaluate"]
        assert (finished / "reports/pretrain.csv").read_text() == "step,epoch,loss\n"
        assert "Skipped" in (finished / "reports/pretrain.html").read_text()
        assert "skipped" in (finished / "reports/evaluation/report.html").read_text()

    def test_new_unlabeled_images_rewrite_only_their_shards(self, finished: Path) -> None:
        before = read_yaml(finished / "dvc.lock")["stages"]["prepare"]["outs"][0]
        with Image.open(next((finished / "data/raw/images").iterdir())) as image:
            ImageOps.flip(image).save(finished / "data/raw/images/zzz.png")  # an identical image would be a duplicate
        assert reproduce(finished, "pretrain") == ["prepare", "pretrain"]
        after = read_yaml(finished / "dvc.lock")["stages"]["prepare"]["outs"][0]
        assert after["nfiles"] == before["nfiles"]
        assert after["md5"] != before["md5"]


def test_a_plan_prepares_first_and_writes_params(finished: Path) -> None:
    write_params(finished, prepare__shard_mb=4)  # this makes prepare run again
    output = run(finished, "pspnet", "plan", "--minutes", "0.5", "--explain")
    assert "finetune.epochs" in output
    assert "Next: make retrain" in output
    planned = read_yaml(finished / "params.yaml")
    assert planned["prepare"]["shard_mb"] == 4
    assert planned["pretrain"]["method"] == {"kind": "none"}
    assert read_yaml(finished / ".pspnet/params.before.yaml")["finetune"] != planned["finetune"]
