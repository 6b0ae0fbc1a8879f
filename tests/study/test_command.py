import shutil
from pathlib import Path

from tests.command import pspnet
from tests.parameters import ROOT


def test_the_command_writes_the_page_and_says_what_is_left(prepared: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(prepared)
    options = ("study", "--hours", "0", "--masks", "8", "--seeds", "2", "--steps", "5")
    done = pspnet(*options, "--arm", "simclr", cwd=tmp_path)
    assert (done.returncode, done.stderr.partition(";")[0]) == (1, "--arm: 'simclr' is not an arm")
    done = pspnet(*options, "--arm", "jigsaw", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "There is no answer yet. An interval requires two seeds, both of scratch and of another arm.",
        "0 of 6 runs are finished.",
        "reports/study/study.html",
    ]
    assert (tmp_path / "reports/study/study.html").exists()


def test_without_a_prepared_set_the_command_says_how_to_make_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = pspnet("study", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("expected a prepared dataset. Create it with: dvc repro prepare\n")
