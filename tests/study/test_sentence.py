"""The sentence and the page say what the table says."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pspnet.study.comparing import chapters
from pspnet.study.sentence import headline, sentence
from tests.study.test_comparing import ARMS, chapter, row, rows

GAIN = [0.66, 0.69, 0.69]
NOTHING = [0.60, 0.64, 0.66]


def test_a_gain_is_told_with_its_interval_and_its_cost() -> None:
    assert sentence(chapter(rows(masked=NOTHING, mean_teacher=GAIN))) == (
        "Train longer first: twice the steps still bring +0.010 to scratch; with 57 masks, mean_teacher gives 0.680 "
        "against 0.630 (+0.050, interval 0.025 to 0.075), at 2.0 times the cost; pretraining gives no measurable gain."
    )


def test_if_nothing_helps_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows(masked=NOTHING, mean_teacher=NOTHING)
    table.loc[table["arm"] == "scratch", "test_mean_iou"] = 0.62
    assert sentence(chapter(table)) == (
        "With 57 masks, scratch gives 0.620; semi-supervised training and pretraining give no measurable gain."
    )


def test_a_second_family_with_a_gain_is_told_too() -> None:
    told = sentence(chapter(rows(masked=[0.66, 0.68, 0.70], mean_teacher=[0.70, 0.72, 0.74])))
    assert "mean_teacher gives 0.720 against 0.630 (+0.090" in told
    assert told.endswith("; masked gives +0.050 (interval 0.050 to 0.050).")


def test_one_seed_is_no_answer() -> None:
    assert headline([]) == "There is no answer yet. An interval requires two seeds, both of scratch and of another arm."
    assert headline([chapter(rows(masked=[0.9]))]) == (
        "There is no answer yet: with 57 masks and a single seed, masked gives 0.900 against 0.610, which may be "
        "chance. An interval requires two seeds."
    )


def test_the_headline_is_about_the_fewest_masks() -> None:
    many = rows(masked=GAIN).assign(masks=3630)
    table = pd.concat([rows(masked=GAIN), many])
    assert "With 57 masks" in headline(chapters(table, ARMS, [100])).replace("with", "With")


def test_a_loss_is_no_gain() -> None:
    assert "masked gives" not in sentence(chapter(rows(masked=[0.5, 0.5, 0.5])))


@pytest.mark.parametrize("arm", ["masked", "mean_teacher"])
def test_a_control_is_never_the_best(arm: str) -> None:
    table = pd.concat([rows(), pd.DataFrame([row(arm, 100, s, 0.9, 200) for s in range(3)])])
    (found,) = chapters(table, [("scratch", "scratch"), (arm, "control")], [100])
    assert found.best is None


def table_of(page: str) -> dict[str, list[str]]:
    """The first table's rows by the name of the arm."""
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    cells = [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL)]
        for line in body.split("<tr")[1:]
    ]
    return {own[0].split(" ")[0]: own for own in cells}


def test_the_page_of_a_study_holds_every_arm_and_agrees_with_its_sentence(whole_study: Path) -> None:
    page = (whole_study / "study.html").read_text()
    results = pd.read_csv(whole_study / "study.csv")
    table = table_of(page)
    assert set(table) == {*results["arm"], "scratch_longer,"}
    answer = re.sub(r"\s+", " ", page[page.index('class="answer">') + 15 :].partition("</p>")[0])
    few = results[(results["masks"] == 3) & (results["arm"] == "scratch") & (results["steps"] == 4)]
    assert table["scratch"][2] == f"{few['test_mean_iou'].mean():.3f}"
    for arm, mean, scratch, gain in re.findall(r"(\w+) gives ([\d.]+) against ([\d.]+) \((\S+),", answer):
        assert table[arm][2:5] == [mean, scratch, gain]
    gaining = [name for name, cells in table.items() if cells[7] == "gain" and name != "jigsaw_shuffled"]
    assert ("against" in answer) == bool(gaining)
    assert "with 3 masks" in answer.lower()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
