"""XMP and .nfo: what others wrote stays, what vtag wrote goes again to the byte."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sidecar_samples import BEACH, COMPACT, DIGIKAM, DOG, HOSTILE, NFO_FILES, XMP_FILES

from vtag.records import Tag
from vtag.sidecar_nfo import merge_nfo, remove_nfo, skeleton
from vtag.sidecar_xml import MAX_BYTES, Unmergeable, parse
from vtag.sidecar_xmp import LISTS, RDF, SUBJECT, TAGS_LIST, extension_served, merge_xmp, remove_xmp

TAG_SETS = [(), (DOG,), (DOG, BEACH), (BEACH, HOSTILE), (HOSTILE, DOG)]
HIERARCHICAL = LISTS[2]


def lists_of(data: bytes) -> dict[str, list[str]]:
    """The items of each list by name, read by the standard library's tree."""
    text = data.decode("utf-16") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else data
    text = data.decode("utf-16-be") if data[:1] == b"\0" else text
    root = ElementTree.fromstring(text)
    found: dict[str, list[str]] = {}
    for one in LISTS:
        properties = root.findall(f".//{{{RDF}}}Description/{{{one.uri}}}{one.name}")
        assert len(properties) <= 1, "XMP allows a property once"
        found[one.name] = [
            item.text or "" for prop in properties for item in prop.iter(f"{{{RDF}}}li")
        ]
    return found


def merged(old: bytes | None, *tags: Tag) -> bytes:
    data = merge_xmp(old, tags).data
    assert data is not None
    return data


def test_a_new_file_holds_the_tag_in_the_three_forms() -> None:
    assert lists_of(merged(None, DOG)) == {
        "subject": ["dog"],
        "TagsList": ["vtag/animal/mammal/dog"],
        "hierarchicalSubject": ["vtag|animal|mammal|dog"],
    }


def test_what_is_there_stays_and_comes_first() -> None:
    lists = lists_of(merged(DIGIKAM.encode(), DOG, BEACH))
    assert lists["subject"] == ["Ferien & Meer", "dog", "seashore"]
    assert lists["TagsList"] == ["Ferien/Meer", "vtag/animal/mammal/dog", "vtag/seashore"]
    assert lists["hierarchicalSubject"] == ["vtag|animal|mammal|dog", "vtag|seashore"]


@pytest.mark.parametrize("name", XMP_FILES)
@pytest.mark.parametrize("tags", TAG_SETS)
def test_merging_only_inserts_and_removing_gives_the_bytes_back(
    name: str, tags: tuple[Tag, ...]
) -> None:
    old = XMP_FILES[name]
    new = merged(old, *tags)
    assert merged(new, *tags) == new  # a second run changes nothing
    assert remove_xmp(new).data == old
    assert remove_xmp(old).data == old  # nothing of vtag, nothing to take
    values = lists_of(new)
    for item in ("subject", "TagsList", "hierarchicalSubject"):
        assert len(set(values[item])) == len(values[item]) >= len(tags)


@pytest.mark.parametrize("name", XMP_FILES)
def test_other_tags_later_leave_no_trace_of_the_first(name: str) -> None:
    old = XMP_FILES[name]
    assert merged(merged(old, DOG, HOSTILE), BEACH) == merged(old, BEACH)
    assert merged(merged(old, DOG)) == old


def test_a_file_of_vtag_alone_goes_with_its_last_tag() -> None:
    new = merged(None, DOG, HOSTILE)
    assert remove_xmp(new).data is None
    assert merge_xmp(new, ()).data is None
    assert merge_xmp(None, ()).data is None


def test_a_file_of_vtag_stays_when_others_added_to_it() -> None:
    rating = ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"/>\n </rdf:RDF>'
    new = merged(None, DOG).replace(
        b"\n </rdf:RDF>", f'\n  <rdf:Description rdf:about=""{rating}'.encode()
    )
    left = remove_xmp(new).data
    assert left is not None
    assert b'xmp:Rating="5"' in left
    assert b"vtag" not in left
    assert merge_xmp(new, ()).data == left
    assert lists_of(left) == {"subject": [], "TagsList": [], "hierarchicalSubject": []}


def test_the_same_tag_of_the_user_stays() -> None:
    left = remove_xmp(merged(DIGIKAM.encode(), DOG)).data
    assert left is not None
    assert lists_of(left)["subject"] == ["Ferien & Meer", "dog"]


def test_a_tag_that_somebody_took_out_stays_out_until_all_is_removed() -> None:
    old = DIGIKAM.encode()
    first = merged(old, DOG, BEACH)
    edited = first.replace(b"\n     <rdf:li>vtag/seashore</rdf:li>", b"")
    assert edited != first
    again = merged(edited, DOG, BEACH)
    assert lists_of(again)["TagsList"] == ["Ferien/Meer", "vtag/animal/mammal/dog"]
    assert merged(again, DOG, BEACH) == again
    assert merged(merged(again, DOG), DOG, BEACH) == again  # remembered while it is not wanted
    left = remove_xmp(again).data
    assert left == old
    assert "vtag/seashore" in lists_of(merged(left, BEACH))["TagsList"]


def test_another_layout_of_the_same_is_no_reason_to_write() -> None:
    new = merged(DIGIKAM.encode(), DOG)
    other = new.replace(b"\n", b"\n   ").replace(b"<rdf:li>dog</rdf:li>", b"<rdf:li >dog</rdf:li >")
    assert merge_xmp(other, (DOG,)).data == other
    left = remove_xmp(other).data
    assert left is not None
    assert lists_of(left) == lists_of(DIGIKAM.encode())


def test_items_with_the_same_text_are_taken_once_each() -> None:
    new = merged(XMP_FILES["no description"], DOG)
    twice = new.replace(b"<rdf:li>dog</rdf:li>", b"<rdf:li>dog</rdf:li><rdf:li>dog</rdf:li>")
    left = remove_xmp(twice).data
    assert left is not None
    assert lists_of(left)["subject"] == ["dog"]


def test_names_are_single_levels_and_inert() -> None:
    lists = lists_of(merged(None, HOSTILE))
    (subject,) = lists["subject"]
    assert subject == "a<b>&\"' --> ]]> \ufffd\ufffd | / WEBVTT =1+1"
    assert lists["TagsList"] == [
        "vtag/<-rdf:li><evil->/a<b>&\"' --> ]]> \ufffd\ufffd - - WEBVTT =1+1"
    ]
    assert lists["hierarchicalSubject"][0].count("|") == 2


def test_the_encoding_is_kept_and_what_it_lacks_is_a_reference() -> None:
    tag = replace(DOG, name="犬")
    new = merged(XMP_FILES["Latin-1"], tag)
    assert new.startswith(b'<?xml version="1.0" encoding="ISO-8859-1"?>')
    assert b"\xdcbung" in new
    assert f"<r:li>&#{ord('犬')};</r:li>".encode() in new
    assert lists_of(new)["subject"] == ["犬"]


def test_a_resource_with_a_name_keeps_it() -> None:
    new = merged(COMPACT.encode(), DOG)
    abouts = {
        element.get(f"{{{RDF}}}about")
        for element in ElementTree.fromstring(new).iter(f"{{{RDF}}}Description")
    }
    assert abouts == {"uuid:1&2"}


BOMB = '<!DOCTYPE a [<!ENTITY b "&c;&c;">]><a>&b;</a>'
DEEP = "<a>" * 100 + "</a>" * 100
NO_LIST = COMPACT.replace("<r:Bag />", "dog")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "DTD"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "DTD"),
        ("<a>&undefined;</a>", "line 1"),
        (DEEP, "nests"),
        ("<a>" + "<b/>" * 100_000 + "</a>", "more than 100000"),
        ("<a><b></a>", "mismatched tag"),
        ("not xml at all", "well-formed"),
        ("", "no element found"),
        (COMPACT + "https://example.org", "well-formed"),
        ("<html/>", "rdf:RDF"),
        ('<?xml version="1.0" encoding="EBCDIC-CP-US"?><a/>', "ebcdic"),
        (NO_LIST, "dc:subject"),
        (COMPACT.replace('r:about="', 'd:subject="dog" r:about="'), "dc:subject"),
    ],
)
def test_what_can_not_be_added_to_is_refused(text: str, why: str) -> None:
    for act in (lambda: merge_xmp(text.encode(), (DOG,)), lambda: remove_xmp(text.encode())):
        with pytest.raises(Unmergeable, match=why) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_bytes_of_another_encoding_are_refused() -> None:
    with pytest.raises(Unmergeable, match="not in its encoding"):
        merge_xmp(COMPACT.encode("latin-1"), (DOG,))


def test_a_file_too_large_is_refused_unread() -> None:
    with pytest.raises(Unmergeable, match="larger than 16 MB"):
        parse(b"<a>" + b" " * MAX_BYTES + b"</a>")


@pytest.mark.parametrize(
    ("statement", "extension"),
    [
        ('p:SidecarForExtension="MP4"/>', "MP4"),
        ("><p:SidecarForExtension> mov </p:SidecarForExtension></rdf:Description>", "mov"),
        (">text</rdf:Description>", None),
    ],
)
def test_which_file_a_shared_sidecar_is_about(statement: str, extension: str | None) -> None:
    text = (
        f'<rdf:RDF xmlns:rdf="{RDF}" xmlns:p="http://ns.adobe.com/photoshop/1.0/">'
        f'<rdf:Description rdf:about="" {statement}</rdf:RDF>'
    )
    assert extension_served(text.encode()) == extension


TEXT = st.text(st.characters(codec=None), max_size=12)
TAGS = st.lists(
    st.builds(
        Tag,
        id=TEXT,
        name=TEXT,
        score=st.just(0.5),
        threshold=st.just(0.5),
        categories=st.lists(TEXT, max_size=2).map(tuple),
    ),
    max_size=4,
)


@settings(max_examples=60)
@given(old=st.sampled_from([*XMP_FILES.values(), None]), first=TAGS, then=TAGS)
@example(old=None, first=[Tag(id="", name="", score=1, threshold=0)], then=[])
def test_any_tags_go_in_and_out(old: bytes | None, first: list[Tag], then: list[Tag]) -> None:
    one = merge_xmp(old, first).data
    two = merge_xmp(one, then).data
    assert merge_xmp(two, then).data == two
    at_once = merge_xmp(old, then).data
    assert (two is None) == (at_once is None)
    if two is not None and at_once is not None:
        assert remove_xmp(two).data == old
        lists = lists_of(two)
        # In another order only, which is no reason to write a file.
        assert {k: sorted(v) for k, v in lists.items()} == {
            k: sorted(v) for k, v in lists_of(at_once).items()
        }
        assert {name for tag in then if (name := lists_name(tag))} <= set(lists["subject"])


def lists_name(tag: Tag) -> str:
    """The name by the plain rule, for characters that XML allows everywhere."""
    return " ".join(tag.name.split()) if tag.name.isascii() and tag.name.isprintable() else ""


# -- .nfo -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NFO_FILES)
@pytest.mark.parametrize("tags", TAG_SETS)
def test_an_nfo_is_added_to_and_given_back(name: str, tags: tuple[Tag, ...]) -> None:
    old = NFO_FILES[name]
    new = merge_nfo(old, tags).data
    assert new is not None
    assert merge_nfo(new, tags).data == new
    assert remove_nfo(new, title="x").data == old
    assert merge_nfo(new, (BEACH,)).data == merge_nfo(old, (BEACH,)).data


def test_an_nfo_has_each_tag_once_after_those_of_the_user() -> None:
    change = merge_nfo(NFO_FILES["kodi"], (replace(DOG, name="DOG"), BEACH, HOSTILE))
    assert change.data is not None
    document = change.data[: change.data.index(b"https:")]
    tags = [tag.text for tag in ElementTree.fromstring(document).findall("tag")]
    assert tags[:3] == ["family", "Dog", "seashore"]  # Dog is there, in another case
    assert tags[3].startswith("a<b>&")
    assert change.added[0] == "seashore"


def test_an_nfo_is_made_only_when_asked_and_goes_again() -> None:
    assert merge_nfo(None, (DOG,)).data is None
    made = merge_nfo(None, (DOG,), title="Übung <1>").data
    assert made is not None
    root = ElementTree.fromstring(made)
    assert [(e.tag, e.text) for e in root] == [("title", "Übung <1>"), ("tag", "dog")]
    assert remove_nfo(made, title="Übung <1>").data is None
    assert merge_nfo(made, (), title="Übung <1>").data is None
    edited = made.replace(b"</movie>", b"<plot>mine</plot></movie>")
    assert remove_nfo(edited, title="Übung <1>").data == edited.replace(
        b'\n  <tag source="vtag">dog</tag>', b""
    )
    same = skeleton("mine")  # by somebody else: nothing of vtag in it
    assert remove_nfo(same, title="mine").data == same


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://example.org/movie", "well-formed"),
        ("<tvshow></tvshow>", "tvshow"),
        ("<movie/>", "empty"),
        (BOMB, "DTD"),
        ("<movie></movie><movie></movie>", "junk"),
    ],
)
def test_an_nfo_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(Unmergeable, match=why):
        merge_nfo(text.encode(), (DOG,))


def test_lists_are_those_that_programs_read() -> None:
    assert [one.qualified for one in LISTS] == [
        "dc:subject", "digiKam:TagsList", "lr:hierarchicalSubject",
    ]  # fmt: skip
    assert (SUBJECT.kind, TAGS_LIST.kind, HIERARCHICAL.kind) == ("Bag", "Seq", "Bag")
