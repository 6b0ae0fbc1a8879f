import re

import pytest

from tests.parameters import ROOT

NAMED = re.findall(r"(tests/[\w/]+\.py)::(\w+)", (ROOT / "docs/security.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_test_named_by_the_security_page_exists(file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_page_on_security_names_tests() -> None:
    assert len(NAMED) > 40
