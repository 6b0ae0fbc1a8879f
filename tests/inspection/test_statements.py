"""Checks the statements in the docs about `pspnet data inspect` that no other test covers, sentence by sentence."""

import re
import shutil
from pathlib import Path

from pspnet.raw.layouts import LAYOUTS
from tests.command import pspnet
from tests.inspection import sets
from tests.parameters import ROOT
from tests.raw.rawdata import shared_data

PAGE = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
NUMBERS = {11: "eleven", 12: "twelve", 13: "thirteen"}


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").replace("┃", " ").split())


def membranes(checkout: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(shared_data("cell_membranes") / name, checkout / "data/raw" / name)


def test_the_page_shows_what_inspect_prints(tmp_path: Path) -> None:
    membranes(tmp_path)
    done = pspnet("data", "inspect", "data/raw", cwd=tmp_path)
    printed = words(done.stdout)
    block = re.search(r"## 2\..*?\n```\n(.*?)```", PAGE, re.DOTALL)
    assert block
    parts = re.split(r"\n(?=\S)", block[1])
    assert len(parts) == 7
    for part in parts:
        assert words(part) in printed
    assert (tmp_path / "inspect.png").is_file()


def test_the_page_counts_the_layouts_and_the_table_lists_them() -> None:
    assert f"[{NUMBERS[len(LAYOUTS)]} layouts](../data/README.md#layouts)" in words(PAGE)
    table = (ROOT / "data/README.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)} == {*LAYOUTS}


def test_inspect_makes_params_that_prepare_reads(tmp_path: Path) -> None:
    membranes(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = "pspnet data inspect data/raw --write"
    assert f"## 4. Set the params\n\n    {command}\n" in PAGE
    done = pspnet(*command.split()[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = pspnet("prepare", "--raw", "data/raw", "--out", "data/prepared", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_archives_are_treated_as_their_contents(tmp_path: Path) -> None:
    sets.plain(tmp_path / "loose")
    shutil.make_archive(str(tmp_path / "data/raw/batch"), "zip", tmp_path / "loose")
    done = pspnet("data", "inspect", "data/raw", cwd=tmp_path)
    assert "1 archive, read without unpacking: batch.zip" in done.stdout
    assert "12 images, 12 with a mask, 0 without" in done.stdout


def test_having_nothing_to_propose_ends_with_status_1_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "data/raw").mkdir(parents=True)
    done = pspnet("data", "inspect", "data/raw", cwd=tmp_path)
    assert "data/raw: no files with an image suffix, and no known annotations" in words(done.stdout)
    assert done.returncode == 1
