"""The query language of `vtag search`: text in, a checked tree out.

    query  = either { OR either }
    either = part { [AND] part }                 two parts side by side are an AND
    part   = [NOT | -] ( word | "phrase" | field:value | "(" query ")" )

Words and phrases may end in `*`. Nothing of the text reaches SQL but as a bound value.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, cast

from vtag.errors import ConfigError
from vtag.search_tree import (
    After,
    And,
    Before,
    Duration,
    Field,
    Node,
    Not,
    Or,
    Origin,
    Score,
    Sign,
    Source,
    Status,
    Words,
    described,
    has_words,
)

MAX_CHARACTERS: Final = 2000
MAX_PARTS: Final = 50  # words and filters; each may read a large part of the index


class QueryError(ConfigError):
    """The query can not be understood; `at` is the character (from 1) at which that shows."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(f"query, character {at}: {why}")
        self.at = at


_SOURCES: Final[dict[str, Origin]] = {
    "audio": "audio", "heard": "audio", "visual": "visual", "seen": "visual", "person": "person",
}  # fmt: skip
_FIELDS: Final = (
    "tag", "category", "source", "score", "after", "before", "path", "status", "duration",
)  # fmt: skip
_TOKEN: Final = re.compile(
    r"""\s*(?: (?P<open>\() | (?P<close>\))
      | (?P<minus>-)(?=[^\s()])
      | (?P<field>[^\W\d_]+):(?P<missing>(?=[\s()]|$))?
      | "(?P<quoted>[^"]*)"(?P<star>\*)?
      | (?P<unclosed>")
      | (?P<bare>[^\s()"]+) )""",
    re.VERBOSE,
)
_COMPARED: Final = re.compile(r"(>=|<=|>|<)(.+)")
_NUMBER: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?|\.[0-9]{1,9}")
_CLOCK: Final = re.compile(r"(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-5][0-9](?:\.[0-9]{1,9})?)")


def parse(text: str) -> Node:
    """The tree of a query: its leaves are Tagged, InPath, Status and Duration.

    Score, source, after and before describe tags: they hold for the words beside them (and
    in parentheses beside them), and where there are none, for any tag. A word without such a
    description may also be in the path.

    Raises:
        QueryError: with the position and what to write instead.
    """
    if len(text) > MAX_CHARACTERS:
        raise QueryError(MAX_CHARACTERS + 1, f"longer than {MAX_CHARACTERS} characters")
    for at, character in enumerate(text, start=1):
        if unicodedata.category(character) in ("Cc", "Cs") and not character.isspace():
            raise QueryError(at, "a control character or a byte that is no text")
    return described(_Parser(text).whole())


@dataclass(frozen=True)
class _Token:
    kind: str  # open, close, minus, AND, OR, NOT, field, words
    at: int
    text: str = ""
    prefix: bool = False
    quoted: bool = False


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self._end = len(text) + 1
        self._parts = 0

    def whole(self) -> Node:
        if not self._tokens:
            raise QueryError(1, "there is nothing to search; write a word, as in: dog AND beach")
        node = self._any_of(0)
        if self._next < len(self._tokens):
            raise QueryError(self._tokens[self._next].at, '")" without a "(" before it')
        return node

    def _peek(self) -> str:
        return self._tokens[self._next].kind if self._next < len(self._tokens) else "end"

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _any_of(self, depth: int) -> Node:
        parts = [self._all_of(depth)]
        while self._peek() == "OR":
            self._take()
            parts.append(self._all_of(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all_of(self, depth: int) -> Node:
        parts = [self._part(depth)]
        while (kind := self._peek()) not in ("OR", "close", "end"):
            if kind == "AND":
                self._take()
            parts.append(self._part(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _part(self, depth: int) -> Node:
        kind = self._peek()
        if kind in ("end", "AND", "OR", "close"):
            at = self._end if kind == "end" else self._tokens[self._next].at
            raise QueryError(at, self._missing())
        token = self._take()
        if depth >= MAX_PARTS:
            raise QueryError(token.at, f"nested deeper than {MAX_PARTS}")
        if kind in ("NOT", "minus"):
            return Not(self._part(depth + 1))
        if kind == "open":
            node = self._any_of(depth + 1)
            if self._peek() != "close":
                raise QueryError(token.at, '"(" is never closed')
            self._take()
            return node
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise QueryError(token.at, f"more than {MAX_PARTS} words and filters")
        if kind == "field":
            return _filter(token, self._take())
        return _words(token, "any")

    def _missing(self) -> str:
        before = self._tokens[self._next - 1] if self._next else None
        names = {"open": '"("', "minus": '"-"', "words": "the word"}
        after = names.get(before.kind, before.kind) if before else "the beginning"
        return f'a word or a "(" is missing after {after} (a word like OR is written "OR")'


def _tokens(text: str) -> list[_Token]:
    tokens = []
    position = 0
    while found := _TOKEN.match(text, position):
        kind = cast(str, found.lastgroup)
        kind = {"star": "quoted", "missing": "field"}.get(kind, kind)
        at = found.start(kind) + (kind != "quoted")  # there the mark before it
        value = found[kind]
        if kind == "unclosed":
            raise QueryError(at, "the quotation mark is never closed")
        if kind == "field":
            if value.lower() not in _FIELDS:
                raise QueryError(
                    at,
                    f'there is no field "{value}:" (there are {", ".join(_FIELDS)}); text with '
                    "a colon is written in quotation marks",
                )
            if found["missing"] is not None:
                raise QueryError(
                    found.end() + 1, f"a value is missing after {value}: (no space, no parenthesis)"
                )
            tokens.append(_Token("field", at, value.lower()))
        elif kind == "quoted":
            tokens.append(_Token("words", at, value, found["star"] is not None, quoted=True))
        elif kind == "bare" and value in ("AND", "OR", "NOT") and not _after_field(tokens):
            tokens.append(_Token(value, at))
        elif kind == "bare":
            body = value.rstrip("*")
            tokens.append(_Token("words", at, body, prefix=body != value))
        elif kind == "minus" and _after_field(tokens):
            raise QueryError(at, f"write -{tokens[-1].text}:… instead of {tokens[-1].text}:-…")
        else:
            tokens.append(_Token(kind, at))
        position = found.end()
        if tokens[-1].kind == "field":
            position = _whole_value(text, position, tokens)
    return tokens


def _whole_value(text: str, position: int, tokens: list[_Token]) -> int:
    """Takes an unquoted value as it stands, colons included (`after:1:30`)."""
    if text[position] == '"':
        return position
    found = re.compile(r'[^\s()"]+').match(text, position)
    assert found is not None  # a missing value was refused
    body = found[0].rstrip("*")
    tokens.append(_Token("words", position + 1, body, prefix=body != found[0]))
    return found.end()


def _after_field(tokens: list[_Token]) -> bool:
    return bool(tokens) and tokens[-1].kind == "field"


def _words(token: _Token, field: Field) -> Words:
    if not has_words(token.text):
        raise QueryError(
            token.at,
            "no letter and no digit to search for; the operators are AND, OR, NOT and parentheses",
        )
    return Words(token.text, field, token.prefix)


def _filter(name: _Token, value: _Token) -> Node:
    field, text, at = name.text, value.text, value.at
    if field in ("tag", "category", "path"):
        return _words(value, cast(Field, field))
    if field == "source":
        if text.lower() not in _SOURCES:
            raise QueryError(
                at, f"a source is seen (visual), heard (audio) or person, not {text!r}"
            )
        return Source(_SOURCES[text.lower()])
    if field == "status":
        if text.lower() not in ("ok", "failed"):
            raise QueryError(at, f"a status is ok or failed, not {text!r}")
        return Status(cast(Literal["ok", "failed"], text.lower()))
    if field == "after":
        return After(_seconds(text, at))
    if field == "before":
        return Before(_seconds(text, at))
    compared = _COMPARED.fullmatch(text)
    example = "score:>0.8" if field == "score" else "duration:>1:30"
    if not compared:
        raise QueryError(at, f"{field} is compared with >, >=, < or <=, as in {example}")
    sign, number = cast(Sign, compared[1]), compared[2]
    if field == "duration":
        return Duration(sign, _seconds(number, at + len(sign)))
    if not _NUMBER.fullmatch(number) or float(number) > 1:
        raise QueryError(at + len(sign), f"a score is between 0 and 1, not {number!r}")
    return Score(sign, float(number))


def _seconds(text: str, at: int) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    clock = _CLOCK.fullmatch(text)
    if not clock:
        raise QueryError(at, f"a time is written like 90, 1:30 or 1:02:30, not {text!r}")
    hours, minutes, seconds = clock.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
