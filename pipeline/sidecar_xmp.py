"""Tags in an XMP file beside the video (ISO 16684-1), merged into what is there.

Three lists carry them, because programs read different ones: `dc:subject` (flat names),
`digiKam:TagsList` (`vtag/animal/dog`) and `lr:hierarchicalSubject` (`vtag|animal|dog`).

A list that exists gets items behind its last one, because XMP allows a property once only
(ISO 16684-1, 6.3); the others, and the marks below, go into an `rdf:Description` of their own.
The marks are properties of a namespace of vtag. Programs that rewrite the file keep unknown
properties, so the tags can be taken out again whatever happened in between:

    added      what vtag put in, as `list=value`; a value that was there before is not in it
    declined   what vtag put in and somebody took out since: it is not put in again
    made       what did not exist before: `file`, the name of a list, or `open:` and the name
               of a list that was an empty tag (`<rdf:Bag/>`) and had to be opened
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import quoteattr

from vtag.records import Tag
from vtag.sidecar_change import Change
from vtag.sidecar_xml import Document, Element, Unmergeable, one_line, parse, xml_text

RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
VTAG: Final = "urn:vtag:xmp:1.0/"
ROOT: Final = "vtag"  # above all hierarchical tags, so that a person sees whose they are
PHOTOSHOP: Final = "http://ns.adobe.com/photoshop/1.0/"

SKELETON: Final = b"""\
<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


@dataclass(frozen=True)
class ListProperty:
    """A property that is a list of texts."""

    uri: str
    prefix: str
    name: str
    kind: str  # "Bag" without order, "Seq" with

    @property
    def qualified(self) -> str:
        """Its name as people write it."""
        return f"{self.prefix}:{self.name}"


SUBJECT: Final = ListProperty("http://purl.org/dc/elements/1.1/", "dc", "subject", "Bag")
TAGS_LIST: Final = ListProperty("http://www.digikam.org/ns/1.0/", "digiKam", "TagsList", "Seq")
HIERARCHICAL: Final = ListProperty(
    "http://ns.adobe.com/lightroom/1.0/", "lr", "hierarchicalSubject", "Bag"
)
LISTS: Final = (SUBJECT, TAGS_LIST, HIERARCHICAL)
_MARKS: Final = tuple(
    ListProperty(VTAG, "vtag", name, "Bag") for name in ("added", "declined", "made")
)


def merge_xmp(old: bytes | None, tags: Sequence[Tag]) -> Change:
    """The file with exactly these tags from vtag, and all that others wrote.

    Args:
        old: the bytes that are there; None where there is no file.

    Raises:
        Unmergeable: `old` is no XMP that can be added to.
    """
    if old is None:
        new, added = _filled(SKELETON, wanted_values(tags), frozenset(), frozenset({"file"}))
        return Change(new, _shown(added)) if added else Change(None)
    sidecar = _Sidecar(parse(old))
    before, known = sidecar.marks("added"), sidecar.marks("declined")
    declined = known | {mark for mark in before if not sidecar.holds(mark)}
    created = sidecar.marks("made") & {"file"}
    base = _stripped(sidecar)
    new, added = _filled(base, wanted_values(tags), declined, created)
    if not added and not declined and created and _is_empty(base):
        return Change(None, taken=_shown(before))
    if added == before and declined == known:
        return Change(old)  # also when another program laid it out in another way since
    return Change(new, _shown(added - before), _shown(before - added - declined))


def remove_xmp(old: bytes) -> Change:
    """The file without anything of vtag; the very bytes from before where nobody else wrote.

    Raises:
        Unmergeable: `old` is no XMP.
    """
    sidecar = _Sidecar(parse(old))
    base = _stripped(sidecar)
    gone = _shown(sidecar.marks("added"))
    if "file" in sidecar.marks("made") and _is_empty(base):
        return Change(None, taken=gone)
    return Change(base, taken=gone)


def wanted_values(tags: Iterable[Tag]) -> dict[ListProperty, tuple[str, ...]]:
    """For each list the values that stand for these tags, in their order, each once."""
    values: dict[ListProperty, dict[str, None]] = {one: {} for one in LISTS}
    for tag in tags:
        name = one_line(tag.name) or one_line(tag.id)
        if not name:
            continue
        # Parents come nearest first; a separator inside a name would be one more level.
        levels = [ROOT, *reversed(tag.categories), name]
        clean = [one_line(level).replace("/", "-").replace("|", "-") for level in levels]
        kept = [level for level in clean if level]
        values[SUBJECT][name] = None
        values[TAGS_LIST]["/".join(kept)] = None
        values[HIERARCHICAL]["|".join(kept)] = None
    return {one: tuple(found) for one, found in values.items()}


def extension_served(old: bytes) -> str | None:
    """Of `clip.xmp`: the suffix of the file that it is about (`mp4`), where it says so.

    That is `photoshop:SidecarForExtension`, which Adobe's programs write.

    Raises:
        Unmergeable: `old` is no XMP.
    """
    key = (PHOTOSHOP, "SidecarForExtension")
    for description in _Sidecar(parse(old)).descriptions:
        if key in description.attributes:
            return description.attributes[key].strip()
        for child in description.children:
            if child.is_a(*key):
                return child.text.strip()
    return None


class _Sidecar:
    """A parsed XMP file and where its lists are."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.rdf = _rdf(document.root)
        self.descriptions = [one for one in self.rdf.children if one.is_a(RDF, "Description")]
        self._places = {one: self._find(one) for one in (*LISTS, *_MARKS)}
        self._values = {
            one: {_value(item) for _, items in places for item in items.children}
            for one, places in self._places.items()
        }

    def places(self, one: ListProperty) -> list[tuple[Element, Element]]:
        """Each place of a list: the property, and the Bag, Seq or Alt inside it."""
        return self._places[one]

    def values(self, one: ListProperty) -> set[str]:
        """All items of a list that are plain text."""
        return self._values[one]

    def marks(self, name: str) -> frozenset[str]:
        """The items of one of vtag's own properties."""
        return frozenset(self.values(next(mark for mark in _MARKS if mark.name == name)))

    def holds(self, mark: str) -> bool:
        """Whether the value of a mark `list=value` is still in its list."""
        name, _, value = mark.partition("=")
        return any(value in self.values(one) for one in LISTS if one.name == name)

    def _find(self, one: ListProperty) -> list[tuple[Element, Element]]:
        found = []
        for description in self.descriptions:
            if (one.uri, one.name) in description.attributes:
                raise _no_list(one)
            for child in description.children:
                if child.is_a(one.uri, one.name):
                    lists = [e for e in child.children if e.is_a(RDF, "Bag", "Seq", "Alt")]
                    if len(lists) != 1:
                        raise _no_list(one)
                    found.append((child, lists[0]))
        return found


def _stripped(sidecar: _Sidecar) -> bytes:
    """The file without vtag's items, lists and marks."""
    made, added = sidecar.marks("made"), sidecar.marks("added")
    whole: list[Element] = [prop for mark in _MARKS for prop, _ in sidecar.places(mark)]
    edits: list[tuple[int, int, str]] = []
    document = sidecar.document
    for one in LISTS:
        left = {mark.partition("=")[2] for mark in added if mark.startswith(f"{one.name}=")}
        left.discard("")
        for prop, items in sidecar.places(one):
            ours: list[Element] = []
            for item in items.children:
                value = _value(item)
                if value in left:  # one item per mark: a second one is somebody else's
                    left.remove(value)
                    ours.append(item)
            if len(ours) < len(items.children) or not ours:
                edits += [_cut(document, item) for item in ours]
            elif one.name in made:
                whole.append(prop)
            elif f"open:{one.name}" in made:
                edits.append((items.inside - 1, items.end, "/>"))
            else:
                edits += [_cut(document, item) for item in ours]
    starts = {element.start for element in whole}
    for description in sidecar.descriptions:
        cut = [child for child in description.children if child.start in starts]
        if cut and len(cut) == len(description.children) and _says_nothing(description):
            edits.append(_cut(document, description))
        else:
            edits += [_cut(document, child) for child in cut]
    return document.edited(edits)


def _filled(
    base: bytes,
    wanted: dict[ListProperty, tuple[str, ...]],
    declined: frozenset[str],
    made: frozenset[str],
) -> tuple[bytes, frozenset[str]]:
    """The file with the wanted values that it lacks, and which these are as `list=value`."""
    sidecar = _Sidecar(parse(base))
    document = sidecar.document
    now_made = set(made)
    added: list[str] = []
    fresh: list[tuple[ListProperty, list[str]]] = []
    edits: list[tuple[int, int, str]] = []
    for one in LISTS:
        present = sidecar.values(one)
        new = [
            value
            for value in wanted[one]
            if value not in present and f"{one.name}={value}" not in declined
        ]
        added += [f"{one.name}={value}" for value in new]
        places = sidecar.places(one)
        if not new:
            continue
        if not places:
            now_made.add(one.name)
            fresh.append((one, new))
            continue
        _, items = places[0]
        if items.closed:
            now_made.add(f"open:{one.name}")
        edits.append(_more_items(document, items, new))
    if added or declined:
        for mark, values in zip(_MARKS, (added, declined, now_made), strict=True):
            if values:
                fresh.append((mark, sorted(values)))
        edits.append(_description(sidecar, fresh))
    return document.edited(edits), frozenset(added)


def _more_items(document: Document, items: Element, values: list[str]) -> tuple[int, int, str]:
    """The edit that puts `values` behind the last item of a list, laid out as that one is."""
    name = f"{items.prefix}:li" if items.prefix else "li"
    last = items.children[-1] if items.children else None
    pad = document.space_before(last).decode() if last else ""
    text = "".join(f"{pad}<{name}>{xml_text(value)}</{name}>" for value in values)
    if items.closed:
        tag = document.text[items.start + 1 : items.inside].split(maxsplit=1)[0].rstrip(b"/>")
        return items.inside - 2, items.inside, f">{text}</{tag.decode()}>"
    at = last.end if last else items.inside
    return at, at, text


def _description(
    sidecar: _Sidecar, lists: list[tuple[ListProperty, list[str]]]
) -> tuple[int, int, str]:
    """The edit that adds a description of its own with these lists."""
    rdf, document = sidecar.rdf, sidecar.document
    if rdf.closed:
        raise Unmergeable("has an empty rdf:RDF; delete the file, it says nothing")
    last = rdf.children[-1] if rdf.children else None
    pads = document.space_before(last).decode() if last else "\n  "
    step = " " if "\n" in pads else ""
    about = next((_about(d) for d in sidecar.descriptions if _about(d)), "")
    spaces = {one.prefix: one.uri for one, _ in lists} | (
        {} if rdf.prefix == "rdf" else {"rdf": RDF}
    )
    declared = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in sorted(spaces.items()))
    text = [f"{pads}<rdf:Description rdf:about={quoteattr(about)}{declared}>"]
    for one, values in lists:
        text.append(f"{pads}{step}<{one.qualified}>{pads}{step * 2}<rdf:{one.kind}>")
        text += [f"{pads}{step * 3}<rdf:li>{xml_text(value)}</rdf:li>" for value in values]
        text.append(f"{pads}{step * 2}</rdf:{one.kind}>{pads}{step}</{one.qualified}>")
    text.append(f"{pads}</rdf:Description>")
    at = last.end if last else rdf.inside
    return at, at, "".join(text)


def _rdf(root: Element) -> Element:
    for element in (root, *root.children):
        if element.is_a(RDF, "RDF"):
            return element
    raise Unmergeable("is no XMP: it has no rdf:RDF; move it away")


def _is_empty(data: bytes) -> bool:
    descriptions = _Sidecar(parse(data)).descriptions
    return all(not one.children and _says_nothing(one) for one in descriptions)


def _says_nothing(description: Element) -> bool:
    return (
        all(name == "about" for _, name in description.attributes) and not description.text.strip()
    )


def _about(description: Element) -> str:
    attributes = description.attributes
    return attributes.get((RDF, "about")) or attributes.get(("", "about"), "")


def _value(item: Element) -> str:
    # A structure is no text; nothing that vtag adds is empty, so it is never taken for one.
    return "" if item.children else one_line(item.text)


def _cut(document: Document, element: Element) -> tuple[int, int, str]:
    return document.lead(element), element.end, ""


def _no_list(one: ListProperty) -> Unmergeable:
    return Unmergeable(
        f"holds {one.qualified} as something other than a list; repair it, "
        f"for example with exiftool"
    )


def _shown(marks: Iterable[str]) -> tuple[str, ...]:
    """Of `list=value` marks, those of one list, for a person; the lists say the same thing."""
    values = [mark.partition("=") for mark in marks]
    full = sorted(value for name, _, value in values if name == TAGS_LIST.name)
    return tuple(full or sorted(value for _, _, value in values))
