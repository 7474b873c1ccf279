"""Documentation that can be checked is checked."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

from vtag.errors import ERROR_CODES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("module", ["vtag.config"])
def test_docstring_examples(module: str) -> None:
    # By import name: a path would load each module a second time.
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_error_code_is_documented_as_it_is() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.+?) \| (yes|no) \|$",
        (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert rows == [
        (name, code.meaning, code.remedy, "yes" if code.retryable else "no")
        for name, code in ERROR_CODES.items()
    ]


def test_links_inside_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
