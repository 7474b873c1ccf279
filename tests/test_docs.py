"""Documentation that can be checked is checked."""

from __future__ import annotations

import argparse
import doctest
import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from vtag.cli import build_parser
from vtag.cli_parse import EXAMPLES as EXAMPLES_IN_ERRORS
from vtag.cli_parse import parse_arguments, parsers_of
from vtag.errors import ERROR_CODES
from vtag.records import (
    Corrected,
    Evidence,
    Failure,
    Media,
    ModelInfo,
    Record,
    Segment,
    SourceFacts,
    Tag,
)

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS]
SHELL = ("", "bash", "sh", "console")  # languages of fenced blocks that hold commands
# Other programs whose flags are named in the text.
OTHERS = ("pip", "torchrun", "python", "ray", "apt", "git", "srun", "sbatch")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[str]:
    """Lines of code: of fenced blocks in a shell's language, and those indented by four."""
    language = None
    held = ""
    for line in text.splitlines():
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            language = fence[1] if language is None else None
        elif language in SHELL or (language is None and line.startswith("    ")):
            held += line.strip()
            if held.endswith("\\"):
                held = held[:-1]
            else:
                yield held
                held = ""


def spans(text: str) -> Iterator[str]:
    """What stands between backticks in running text."""
    prose = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^    .*$", "", prose, flags=re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        yield " ".join(span.replace("\\|", "|").split())


def commands(line: str) -> Iterator[list[str]]:
    """The words after each `vtag` of a line of shell."""
    if not re.search(r"(^|[\s/])vtag\s", line):
        return
    found = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    found.whitespace_split = True
    words: list[str] = []
    for word in [*found, ";"]:
        if word[0] not in ";&|<>()":
            words.append(word)
            continue
        while words and "=" in words[0]:  # variables
            words.pop(0)
        if words[:3] == ["python", "-m", "vtag"]:
            words = words[2:]
        if words and Path(words[0]).name == "vtag":
            yield words[1:]
        words = [""] if word in "<>" else []  # what follows is a file


def printed_commands(page: Path) -> list[list[str]]:
    """The commands in the blocks of a page; a last "…" stands for more of the same."""
    found = [words for line in blocks(text_of(page)) for words in commands(line)]
    return [words[:-1] if words[-1:] == ["…"] else words for words in found]


@functools.cache
def the_parser() -> argparse.ArgumentParser:
    return build_parser()  # without settings nothing changes it


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the real parser has against the words after `vtag`; empty if nothing."""
    try:
        parse_arguments(the_parser(), words, {"VTAG_CONFIG": "/dev/null"})
    except SystemExit as end:
        return f"vtag {shlex.join(words)}: {capsys.readouterr().err}" if end.code else ""
    return ""


def options() -> dict[str, dict[str, argparse.Action]]:
    """The flags of each command."""
    return {
        name: {flag: action for action in parser._actions for flag in action.option_strings}
        for name, parser in parsers_of(the_parser()).items()
    }


def slug(heading: str) -> str:
    """The anchor that a heading has on the page of a repository."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def row(page: str, first: str) -> str:
    """The line of a table of docs/record.md that begins with a field."""
    return next(line for line in page.splitlines() if line.startswith(f"| `{first}` |"))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text_of(page)):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}#{anchor}"


def test_the_map_shows_every_page() -> None:
    shown = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of(ROOT / "docs" / "README.md")))
    assert shown == {page.name for page in DOCS} - {"README.md"}


def test_commands_are_found_where_they_stand() -> None:
    text = "\n".join(
        [
            "    vtag run a \\",
            "        --out 'b c.jsonl'   # said",
            "```bash",
            "A=1 .venv/bin/vtag tag x && python -m vtag plan y | cat > vtag",
            "```",
            "```json",
            "vtag no",
            "```",
            "vtag: 3 inputs, `vtag labels`",
        ]
    )
    assert [words for line in blocks(text) for words in commands(line)] == [
        ["run", "a", "--out", "b c.jsonl"],
        ["tag", "x"],
        ["plan", "y"],
    ]
    assert list(spans(text)) == ["vtag labels"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_printed_command_is_understood(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in printed_commands(page):
        assert refusal(words, capsys) == ""


def test_there_are_commands_to_look_at() -> None:
    assert sum(len(printed_commands(page)) for page in PAGES) > 60


def test_a_wrong_command_would_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "vtag run ./videos",  # lacks --out
        "vtag runs ./videos --out a.jsonl",
        "vtag run ./videos --out a.jsonl --ou b",
        "vtag run ./videos --out a.jsonl --sampling some",
    ):
        assert refusal(line.split()[1:], capsys) != ""


def test_the_examples_in_error_messages_are_understood() -> None:
    for command, example in EXAMPLES_IN_ERRORS.items():
        words = shlex.split(example)
        assert words[:2] == ["vtag", command]
        parse_arguments(the_parser(), words[1:], {"VTAG_CONFIG": "/dev/null"})


def test_commands_and_flags_in_the_text_exist() -> None:
    """Also of sentences that name a command without all that it needs, or a flag alone."""
    known = options()
    every = {flag for flags in known.values() for flag in flags}
    for script in [*(ROOT / "benchmarks").glob("*.py"), *EXAMPLES]:
        every |= set(re.findall(r'"(--[\w-]+)"', text_of(script)))
    checked = 0
    for page in PAGES:
        for span in spans(text_of(page)):
            words = span.split()
            if Path(words[0]).name in OTHERS:
                continue
            flags = [word.partition("=")[0] for word in words if re.match(r"--\w", word)]
            allowed = every
            if words[0] == "vtag" and re.match("[a-z]", "".join(words[1:2])):
                assert words[1] in known, f"{page.name}: {span}"
                allowed = set(known[words[1]])
            for flag in flags:
                assert flag.rstrip(",") in allowed | {"--version"}, f"{page.name}: {span}"
            checked += len(flags)
    assert checked > 150


def test_every_field_of_a_record_is_documented() -> None:
    page = text_of(ROOT / "docs" / "record.md")
    whole, of_tag = page.split("\nA tag:\n")
    names = {kind: {f.name for f in fields(kind)} for kind in (Record, Tag)}
    assert set(re.findall(r"^\| `(\w+)` \|", whole, re.MULTILINE)) == names[Record] | {"schema"}
    assert set(re.findall(r"^\| `(\w+)` \|", of_tag, re.MULTILINE)) == names[Tag]
    media = next(part for part in whole.split("\n\n") if part.startswith("`media`: "))
    parts = [
        (media, Media),
        (row(whole, "model"), ModelInfo),
        (row(whole, "error"), Failure),
        (row(whole, "source"), SourceFacts),
        (row(whole, "corrections"), Corrected),
        (row(of_tag, "segments"), Segment),
        (row(of_tag, "evidence"), Evidence),
    ]
    for text, kind in parts:
        for field in fields(kind):
            assert re.search(rf"\b{field.name}\b", text), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_commands_beside_the_cells_of_an_example_are_understood(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = re.findall(r"^# (?:%% )?.*?[:.]\s+(vtag .+)$", text_of(script), re.MULTILINE)
    found = [words for line in told if "…" not in line for words in commands(line)]
    assert len(found) >= 5
    for words in found:
        assert refusal(words, capsys) == ""
