"""Sidecars as other programs lay them out, and tags to merge into them. Written by hand for
these tests, each after the habits of the program named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtag.records import Segment, Tag

DOG = Tag(
    id="n02084071",
    name="dog",
    score=0.93,
    threshold=0.5,
    categories=("mammal", "animal"),
    sources=("visual", "audio"),
    segments=(Segment(2.0, 11.5, 0.95), Segment(60.0, 62.4, 0.7)),
)
BEACH = Tag(
    id="n09428293",
    name="seashore",
    score=0.7,
    threshold=0.5,
    sources=("visual",),
    segments=(Segment(5.0, 61.0, 0.8),),
)
HOSTILE = Tag(
    id="x",
    name="a<b>&\"' --> ]]> \x00\udcff | / \n\n WEBVTT =1+1",
    score=0.6,
    threshold=0.1,
    categories=("</rdf:li><evil/>",),
    segments=(Segment(0.0, 1.0, 0.6),),
)

# digiKam (exiv2): elements and attributes mixed, a comment, an unknown namespace.
DIGIKAM = """<?xml version="1.0" encoding="UTF-8"?>
<!-- kept by hand -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:digiKam="http://www.digikam.org/ns/1.0/"
    xmlns:odd='urn:example:"odd">'
   xmp:Rating="4"
   odd:thing='a > b'>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Ferien &amp; Meer</rdf:li><!-- not sorted -->
     <rdf:li>dog</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <digiKam:TagsList>
    <rdf:Seq>
     <rdf:li>Ferien/Meer</rdf:li>
    </rdf:Seq>
   </digiKam:TagsList>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
# The same without what exiftool (attributes behind a quoted ">") and exiv2 (a quote in the name
# of a namespace, a comment before the packet) do not get right themselves.
PLAIN = (
    DIGIKAM.replace("<!-- kept by hand -->\n", "")
    .replace("""'urn:example:"odd">'""", "'urn:example:odd/'")
    .replace("'a > b'", "'a &gt; b'")
)
# All in one line, other prefixes, an empty list as one tag, a resource with a name.
COMPACT = (
    '<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:d="http://purl.org/dc/'
    'elements/1.1/"><r:Description r:about="uuid:1&amp;2"><d:subject><r:Bag /></d:subject>'
    "<d:title><r:Alt><r:li xml:lang='x-default'>Übung</r:li></r:Alt></d:title>"
    "</r:Description></r:RDF>"
)
# The default namespace is RDF's; a list with only a comment; no description about tags.
DEFAULT_NAMESPACE = """<x:xmpmeta xmlns:x='adobe:ns:meta/'>
<RDF xmlns='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>
\t<Description about='' xmlns:lr='http://ns.adobe.com/lightroom/1.0/'>
\t\t<lr:hierarchicalSubject><Bag><!-- none --></Bag></lr:hierarchicalSubject>
\t</Description>
</RDF></x:xmpmeta>"""
NO_DESCRIPTION = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta>\n\n'
)
XMP_FILES = {
    "digikam": DIGIKAM.encode(),
    "digikam, Windows": DIGIKAM.replace("\n", "\r\n").encode(),
    "with a byte order mark": b"\xef\xbb\xbf" + DIGIKAM.encode(),
    "compact": COMPACT.encode(),
    "UTF-16": ("\ufeff" + COMPACT).encode("utf-16-le"),
    "UTF-16, big end first, no mark": COMPACT.encode("utf-16-be"),
    "Latin-1": ('<?xml version="1.0" encoding="ISO-8859-1"?>' + COMPACT).encode("latin-1"),
    "default namespace": DEFAULT_NAMESPACE.encode(),
    "no description": NO_DESCRIPTION.encode(),
}

# Kodi's "combination": a link may follow.
MOVIE = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<movie>
    <title>Am Meer</title>
    <tag>family</tag>
    <!-- by hand -->
    <tag clear="true">Dog</tag>
    <plot>a &lt; b</plot>
</movie>
https://example.org/movie?a=1&b=2
"""
NFO_FILES = {
    "kodi": MOVIE.encode(),
    "without tags, Windows": b"<movie>\r\n\t<title>x</title>\r\n</movie>",
    "nothing inside": b"<musicvideo></musicvideo>",
    "Latin-1": b"<?xml version='1.0' encoding='iso-8859-1'?><movie><title>\xdcbung</title></movie>",
}


def record(path: Path | str, *tags: Tag, **changes: Any) -> dict[str, Any]:
    """A record as a line of a file of results holds it."""
    fields = {
        "schema": 1,
        "id": "sha256:00",
        "path": str(path),
        "status": "ok",
        "media": {"duration": 62.4},
        "tags": [
            {
                "id": tag.id,
                "name": tag.name,
                "score": tag.score,
                "threshold": tag.threshold,
                "categories": list(tag.categories),
                "sources": list(tag.sources),
                "segments": [
                    {"start": s.start, "end": s.end, "score": s.score} for s in tag.segments
                ],
                "evidence": [],
            }
            for tag in tags
        ],
        "model": {"name": "m", "fingerprint": "f1", "labels": 3},
        "timing": {},
        "warnings": [],
    }
    return fields | changes
