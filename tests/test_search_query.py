"""The query language: what is understood, and what is said of the rest."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtag import ConfigError
from vtag.search_query import QueryError, parse
from vtag.search_tree import (
    PATH_SCORE,
    After,
    And,
    Before,
    Duration,
    InPath,
    Node,
    Not,
    Or,
    Score,
    Source,
    Status,
    Tagged,
    Words,
)


def word(text: str, prefix: bool = False) -> Node:
    words = Words(text, "any", prefix)
    return Or((Tagged(words), InPath(words, PATH_SCORE)))


def tagged(text: str, fits: Node | None = None) -> Tagged:
    return Tagged(Words(text, "tag"), fits)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("dog", word("dog")),
        ("dog*", word("dog", prefix=True)),
        ('"hot do"*', word("hot do", prefix=True)),
        ("dog beach", And((word("dog"), word("beach")))),
        ("dog AND beach", And((word("dog"), word("beach")))),
        ("a OR b c", Or((word("a"), And((word("b"), word("c")))))),
        ("(a OR b) c", And((Or((word("a"), word("b"))), word("c")))),
        ("NOT a b", And((Not(word("a")), word("b")))),
        ("a -b", And((word("a"), Not(word("b"))))),
        ("NOT NOT a", Not(Not(word("a")))),
        ("and", word("and")),
        ('"OR"', word("OR")),
        ("wire-haired", word("wire-haired")),
        ('tag:"hot dog"', tagged("hot dog")),
        ("TAG:dog", tagged("dog")),
        ("tag:OR", tagged("OR")),
        ("category:animal", Tagged(Words("animal", "category"))),
        ("path:2019/beach", InPath(Words("2019/beach", "path"), 1.0)),
        ("status:failed", Status("failed")),
        ("duration:>=1:30", Duration(">=", 90.0)),
        ("duration:<90.5", Duration("<", 90.5)),
        ("source:heard", Tagged(None, Source("audio"))),
        ("source:person", Tagged(None, Source("person"))),
        ("after:1:02:03.5", Tagged(None, After(3723.5))),
        ("after:100:00", Tagged(None, After(6000.0))),
        ("score:>.8", Tagged(None, Score(">", 0.8))),
    ],
)  # fmt: skip
def test_what_is_understood(text: str, tree: Node) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("tag:a score:>0.8", tagged("a", Score(">", 0.8))),
        # Inside parentheses and behind NOT too.
        (
            "(tag:a OR tag:b) -tag:c source:seen",
            And(
                (
                    Or((tagged("a", Source("visual")), tagged("b", Source("visual")))),
                    Not(tagged("c", Source("visual"))),
                )
            ),
        ),
        # One tag must fit both; and a whole OR may describe it.
        (
            "tag:a after:5 before:9",
            tagged("a", And((After(5.0), Before(9.0)))),
        ),
        ("tag:a (before:5 OR after:9)", tagged("a", Or((Before(5.0), After(9.0))))),
        ("tag:a NOT source:heard", tagged("a", Not(Source("audio")))),
        # Not across an OR.
        ("tag:a OR score:>0.8", Or((tagged("a"), Tagged(None, Score(">", 0.8))))),
        # With nothing beside it that names tags: any tag.
        (
            "path:x score:>0.8",
            And((InPath(Words("x", "path"), 1.0), Tagged(None, Score(">", 0.8)))),
        ),
        # A word that must be heard can not be one of the path.
        ("a source:heard", Tagged(Words("a"), Source("audio"))),
    ],
)  # fmt: skip
def test_what_describes_a_tag_moves_to_the_words_beside_it(text: str, tree: Node) -> None:
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("", 1, "nothing to search"),
        ("   ", 1, "nothing to search"),
        ("dog AND", 8, "missing after AND"),
        ("AND dog", 1, "missing after the beginning"),
        ("dog OR OR cat", 8, "missing after OR"),
        ("NOT", 4, "missing after NOT"),
        ("(dog", 1, "never closed"),
        ("a (b (c) d", 3, "never closed"),
        ("()", 2, 'missing after "("'),
        ("dog)", 4, 'without a "("'),
        ('a "dog', 3, "never closed"),
        ('dog ""', 5, "no letter"),
        ("dog && cat", 5, "AND, OR, NOT"),
        ("dog *", 5, "no letter"),
        ("colour:red", 1, 'no field "colour:"'),
        ("http://x", 1, "quotation marks"),
        ("a tag:", 7, "missing after tag:"),
        ("tag: dog", 5, "missing after tag:"),
        ("tag:(a OR b)", 5, "missing after tag:"),
        ("source:smelled", 8, "seen (visual), heard (audio) or person"),
        ("status:bad", 8, "ok or failed"),
        ("score:0.8", 7, "score:>0.8"),
        ("score:>80", 8, "between 0 and 1"),
        ("score:>=nan", 9, "between 0 and 1"),
        ("duration:60", 10, "duration:>1:30"),
        ("duration:>1:99", 11, "1:30"),
        ("dog after:soon", 11, "1:30"),
        ("a\x1b[2J", 2, "control character"),
        ("a\udcff", 2, "no text"),
        ("x " * 51, 101, "more than 50"),
        ("(" * 60 + "x" + ")" * 60, 51, "deeper"),
        ("x" * 2001, 2001, "longer"),
    ],
)  # fmt: skip
def test_what_is_not_is_said_in_one_line_with_the_place(text: str, at: int, says: str) -> None:
    with pytest.raises(QueryError) as caught:
        parse(text)
    assert caught.value.at == at
    assert str(caught.value).startswith(f"query, character {at}: ")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert isinstance(caught.value, ConfigError)  # the exit status of wrong usage


@given(st.text(alphabet="ab ()\"*-:>.19\\ORANDT'", max_size=30) | st.text(max_size=30))
def test_any_text_is_understood_or_refused(text: str) -> None:
    with suppress(QueryError):
        parse(text)
