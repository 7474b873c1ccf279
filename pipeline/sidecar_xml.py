"""XML of other programs, read with the place of everything in it.

A sidecar holds what other software and its user put there. Reading it into a tree and writing
the tree again would lose what the tree does not model: comments, processing instructions,
quotes, white space. So the tree here only says where things are, and a merge is a few
insertions into the original text.

Read by expat without entities: a document type declaration is refused at its first byte, and
without one XML knows only its five predefined entities (XML 1.0, section 4.6), so nothing
expands and nothing is fetched. Size and depth are bounded.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat
from xml.sax.saxutils import escape

from vtag.errors import VtagError

MAX_BYTES: Final = 16 << 20  # darktable's histories reach a few hundred KB
MAX_DEPTH: Final = 64
MAX_ELEMENTS: Final = 100_000  # about a second of one core; a hundred tags are 500

_SEPARATOR: Final = "\x01"  # no XML document can hold it, so no namespace can forge it
_SPACE: Final = b" \t\r\n"
_START_TAG: Final = re.compile(rb"""<[^>"']*(?:(?:"[^"]*"|'[^']*')[^>"']*)*>""")
_DECLARED: Final = re.compile(
    rb"""<\?xml[^>]{0,80}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']"""
)
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CODECS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "iso-8859-15": "iso-8859-15",
    "windows-1252": "cp1252",
}
# XML 1.0, production 2: what may stand in a document at all; lone surrogates may not.
_FORBIDDEN: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Unmergeable(VtagError):
    """An existing sidecar that vtag can not add to without risk; it is left as it is."""


@dataclass(slots=True)
class Element:
    """One element; offsets are bytes of `Document.text`.

    Attributes:
        uri, name, prefix: expanded name, and the prefix by which the document wrote it.
        attributes: values by (uri, name), without declarations of namespaces.
        start, inside: of the start tag, and right behind it.
        outside, end: of the end tag, and right behind it.
        closed: whether it is one tag, `<a/>`; then inside, outside and end are the same.
        text: its own characters, without those of its children.
    """

    uri: str
    name: str
    prefix: str
    attributes: dict[tuple[str, str], str]
    start: int
    inside: int
    closed: bool
    outside: int = 0
    end: int = 0
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def is_a(self, uri: str, *names: str) -> bool:
        """Whether it has this namespace and one of these names."""
        return self.uri == uri and self.name in names


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        text: the document in UTF-8, without byte order mark.
        root: its outermost element.
        encoding, mark: Python's name of the file's encoding, and its byte order mark.
    """

    text: bytes
    root: Element
    encoding: str
    mark: bytes

    def space_before(self, element: Element) -> bytes:
        """The white space between an element and what stands before it."""
        return self.text[self.lead(element) : element.start]

    def lead(self, element: Element) -> int:
        """Where the white space before an element begins."""
        at = element.start
        while at and self.text[at - 1] in _SPACE:
            at -= 1
        return at

    def edited(self, edits: Iterable[tuple[int, int, str]]) -> bytes:
        """The file with each range [start, end) of `text` replaced; ranges do not overlap.

        Characters that the file's encoding lacks become character references.
        """
        parts: list[bytes] = []
        at = 0
        for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
            if start < at:
                raise ValueError(f"the edits at {start} and before {at} overlap")
            parts += [self.text[at:start], new.encode()]
            at = end
        text = b"".join([*parts, self.text[at:]]).decode()
        return self.mark + text.encode(self.encoding, "xmlcharrefreplace")


def parse(data: bytes, *, trailing_text: bool = False) -> Document:
    """Where everything is in an XML file.

    Args:
        trailing_text: whether text may follow the outermost element. Kodi's .nfo files may
            end in a link (kodi.wiki/view/NFO_files/Combination).

    Raises:
        Unmergeable: no well-formed XML, a document type declaration, too large, nested too
            deep, or in an encoding that vtag does not know.
    """
    if len(data) > MAX_BYTES:
        raise Unmergeable(f"is larger than {MAX_BYTES >> 20} MB and was not read")
    mark, encoding, decoded = _decoded(data)
    text = decoded.encode()
    builder = _Builder(text)
    # A private parser instead of xml.etree: that one tells no offsets.
    try:
        builder.parser.Parse(text, True)
    except expat.ExpatError as err:
        rest = text[builder.root.end :] if builder.root is not None and builder.root.end else b"<"
        if not (trailing_text and b"<" not in rest):
            raise Unmergeable(
                f"is no well-formed XML (line {err.lineno}: {expat.ErrorString(err.code)}); "
                f"repair it or move it away"
            ) from err
    if builder.root is None:
        raise Unmergeable("holds no XML element; move it away")
    return Document(text, builder.root, encoding, mark)


def xml_text(text: str) -> str:
    """The text as the content of an element: escaped, in one line, forbidden characters gone."""
    return escape(one_line(text))


def one_line(text: str) -> str:
    """The text without what XML forbids, white space collapsed to single blanks."""
    return " ".join(_FORBIDDEN.sub("\ufffd", text).split())


class _Builder:
    """Makes the tree while expat reads."""

    def __init__(self, text: bytes) -> None:
        self.root: Element | None = None
        self._text = text
        self._elements = 0
        self._open: list[Element] = []
        # The encoding given here overrides what the document declares: it was decoded already.
        self.parser = expat.ParserCreate("utf-8", _SEPARATOR)
        self.parser.namespace_prefixes = True
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _doctype(self, name: str, system: str | None, public: str | None, inside: int) -> None:
        raise Unmergeable("has a document type declaration (DTD), which vtag does not read")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise Unmergeable(f"nests more than {MAX_DEPTH} elements and was not read")
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise Unmergeable(f"holds more than {MAX_ELEMENTS} elements and was not read")
        start = self.parser.CurrentByteIndex
        tag = _START_TAG.match(self._text, start)
        if tag is None:
            raise Unmergeable("holds a tag that vtag can not place")
        uri, local, prefix = _split(name)
        named = {_split(key)[:2]: value for key, value in attributes.items()}
        closed = tag.group().endswith(b"/>")
        element = Element(uri, local, prefix, named, start, tag.end(), closed)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        element = self._open.pop()
        if element.closed:
            element.outside = element.end = element.inside
            return
        element.outside = self.parser.CurrentByteIndex
        element.end = self._text.index(b">", element.outside) + 1

    def _characters(self, data: str) -> None:
        if self._open:
            self._open[-1].text += data


def _split(name: str) -> tuple[str, str, str]:
    parts = name.split(_SEPARATOR)
    if len(parts) == 1:
        return "", parts[0], ""
    return parts[0], parts[1], parts[2] if len(parts) > 2 else ""


def _decoded(data: bytes) -> tuple[bytes, str, str]:
    mark, encoding = next((m for m in _MARKS if data.startswith(m[0])), (b"", ""))
    if not encoding:
        wide = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
        declared = _DECLARED.match(data)
        said = declared.group(1).decode().lower() if declared else "utf-8"
        encoding = wide.get(data[:2]) or _CODECS.get(said, "")
        if not encoding:
            raise Unmergeable(f"is in the encoding {said}, which vtag does not read")
    try:
        return mark, encoding, data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as err:
        raise Unmergeable(f"is not in its encoding, {encoding}; repair it or move it away") from err
