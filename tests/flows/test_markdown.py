"""How the Prefect UI would render names chosen by users. markdown-it is used in place of the UI's own renderer."""

import json
from html import unescape
from pathlib import Path
from re import sub
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from flows import predict, summary
from flows.markdown import escaped
from flows.tasks import StageResult

EVIL = [
    "<img src=x onerror=alert(1)>", "[sign in](http://evil.example)", "![](http://evil.example/seen.png)",
    "`code` **bold** _x_ ~~y~~", "a | b | c", "line\n# heading\n\n| x |", "road\\", "&lt;b&gt;",
]  # fmt: skip
NAMES = ["road", "pspnet-demo: version 1", "mean_iou 0.512 (+0.1)", "a.b", "Straße", *EVIL]
PAGE = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def shown(html: str) -> str:
    return unescape(sub("<[^>]*>", "", html)).strip()


def one_line(name: str) -> str:
    return " ".join(name.split())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is(name: str) -> None:
    assert PAGE.render(f"# {escaped(name)}").count("<") == 2
    assert shown(PAGE.render(f"# {escaped(name)}")) == one_line(name)
    table = PAGE.render(f"| a | b |\n|---|---|\n| {escaped(name)} | 1 |")
    assert table.count("<td>") == 2
    assert shown(table.partition("<td>")[2].partition("</td>")[0]) == one_line(name)


@pytest.mark.parametrize("name", ["http://evil.example", "see www.evil.example", "x@evil.example"])
def test_an_address_does_not_become_a_link(name: str) -> None:
    """A renderer may turn bare addresses in the source into links, as marked does."""
    assert name not in escaped(name)
    assert shown(PAGE.render(escaped(name))) == name


def tags(text: str) -> set[str]:
    """Return the HTML tags that a name has added to the page."""
    html = PAGE.render(text)
    return {tag for tag in ("<img", "<a ", "<script", "<code", "<del", "<em") if tag in html}


def test_the_retrain_summary_shows_names_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []
    monkeypatch.setattr(summary, "create_markdown_artifact", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(summary, "create_table_artifact", lambda *arguments: made.append(arguments))
    reasons = [{"passed": False, "rule": name, "text": f"class {name} lost 0.1"} for name in EVIL]
    for name in EVIL:
        made.clear()
        found = summary.RetrainSummary(tmp_path)
        found.add(StageResult("finetune", "ran", 1.0, where=name))
        found.registered = {
            "headline": f"{name}: version 1", "pages": {}, "picture": "none.png", "test_mean_iou": 0.5,
            "promotion": {"decision": {"reasons": reasons}},
        }  # fmt: skip
        found.publish()
        (_, _, of_table), (text, _, of_text) = made
        for one in (of_table, text, of_text):
            assert tags(one) == set()
        assert PAGE.render(text).count("<td>") == 3 * len(EVIL) + 5


def test_the_prediction_summary_shows_names_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []
    monkeypatch.setattr(predict, "create_markdown_artifact", lambda *arguments: made.append(arguments))
    shares = {f"share_{name}": [0.5] for name in EVIL}
    sizes = {"height": [10**6], "width": [10**6]}  # without a picture
    table = pa.table({"image": ["a"], "confidence": [0.5], **sizes, **shares})
    out = tmp_path / "<img src=x>`"
    out.mkdir()
    pq.write_table(table, out / "predictions.parquet")
    predict.PredictionSummary(predict.Told("<b>`x`</b> version 1"), out).publish()
    ((text, _, description),) = made
    assert tags(text) == tags(description) == set()
    assert PAGE.render(text).count("<td") == 2 * len(EVIL)
    assert json.dumps(one_line(EVIL[0]))[1:-1] in shown(PAGE.render(text))
