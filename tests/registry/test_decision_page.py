import re

import pytest

from pspnet.registry.decision_page import decision_page
from tests.registry.reports import CLASSES, GOOD, OLD, found, gate, report


def test_the_page_loads_nothing_else_and_escapes_names() -> None:
    names = ("<script>alert(1)</script>", 'car <b> & "van"', "sky", "tree", "train")
    candidate, champion = (report(found(a), found(a), bundle=str(a), classes=names) for a in (90, 80))
    page = decision_page(gate(candidate, champion, withdrawn="<img src=x> rolled back"))
    assert not re.search(r"https?://|@import|<link|<script|<iframe|<img|url\(|src=", page.replace("&lt;img src=x", ""))
    assert "&lt;script&gt;" in page and "car &lt;b&gt; &amp; &#34;van&#34;" in page
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page)


def test_the_page_shows_the_decision() -> None:
    page = decision_page(gate(report(found(60, 99)), report(found(80, 50), bundle="b"), min_gain=0.01))
    assert '<p class="outcome refused">refused</p>' in page
    assert "no class may lose more than 0.100 IoU: road loses 0.200 (0.800 → 0.600)" in page
    rows = {name: re.search(rf">{name}</span>.*?</tr>", page, re.DOTALL) for name in CLASSES}
    numbers = {name: re.findall(r'<td class="number.*?">(.*?)</td>', row[0]) for name, row in rows.items() if row}
    assert numbers == {
        "road": ["0.800", "0.600", "−0.200"],
        "car": ["0.800", "0.600", "−0.200"],
        "sky": ["0.500", "0.990", "+0.490"],
        "tree": ["0.500", "0.990", "+0.490"],
        "train": ["absent", "absent", "–"],
    }
    assert page.count('class="number loss"') == 2
    assert page.count('<figure class="interval"') == 1


def test_the_page_of_the_first_version_compares_nothing() -> None:
    page = decision_page(gate(GOOD, None, earlier_decisions=0))
    assert "<figure" not in page and ">difference<" not in page and "bundle of the champion" not in page
    assert "used for no decisions before" in " ".join(page.split())


@pytest.mark.parametrize(("earlier", "words"), [(1, "1 decision before"), (1234, "1,234 decisions before")])
def test_the_page_says_how_many_decisions_the_split_has_made(earlier: int, words: str) -> None:
    page = " ".join(decision_page(gate(GOOD, OLD, earlier_decisions=earlier)).split())
    assert f"This test split was used for {words} this one; each further decision makes a lucky winner" in page


@pytest.mark.parametrize("min_gain", [-1.0, -0.01, 0.0, 0.5])
@pytest.mark.parametrize(("ours", "theirs"), [(90, 80), (80, 90), (80, 80)])
def test_the_interval_is_drawn_within_the_figure(ours: int, theirs: int, min_gain: float) -> None:
    candidate, champion = report(found(ours), found(70)), report(found(theirs), found(71), bundle="b")
    figure = decision_page(gate(candidate, champion, min_gain=min_gain)).split("<figure")[1].split("</figure>")[0]
    places = [float(place) for place in re.findall(r'\b(?:x|x1|x2|cx)="([^"]*)%"', figure)]
    assert len(places) >= 5 and all(0 <= place <= 100 for place in places)
