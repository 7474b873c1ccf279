"""The report in a real browser: its search box, and what a person found wrong in other places."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from media import draw_clip
from report_library import failure, many_records, open_browser, record, tag, write_results
from test_report_browser import ENTER, ESCAPE, Page

from vtag.report import ReportConfig, write_report
from vtag.search import search

LONG = ["Drum (sound)", "Percussion (struck)", "Musical instrument", "Music of any kind and age"]
DOG = tag("dog", 0.9, segments=[(1, 2)], moments=[1.2], categories=["animal"])
CAT = tag("cat", 0.5, segments=[(0, 1)], moments=[0.5], categories=["animal"])
HOT_DOG = tag("hot dog", 0.7, segments=[(2, 3)], moments=[2.2], categories=["food"])
UNI = tag("\u00fcn\u00ef", 0.6, categories=["f\u00eate"])
GUITAR = tag(
    "guitar", 0.8, segments=[(0, 1), (2, 4)], sources=["audio"], moments=[3.0], categories=LONG
)
GUITAR["segments"][0]["score"] = 0.4
BEACH = tag("beach ball", 1.0, sources=[], segments=[], moments=[])  # as a person's correction


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = open_browser(tmp_path_factory.mktemp("downloads"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def library(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Five videos and a copy that are there, one that is gone, and three that never were videos."""
    root = tmp_path_factory.mktemp("box")
    (root / "one").mkdir()
    (root / "two").mkdir()
    dog = draw_clip(root / "one" / "dog.mp4", seconds=4, size=(320, 180))
    copy = shutil.copy(dog, root / "two" / "copy of it.mp4")
    other = draw_clip(root / "one" / "cafe\u0301 trip.mp4", seconds=4, fps=20)
    both = draw_clip(root / "two" / "both.mp4", seconds=4, fps=10, tone_hz=440.0)
    snack = draw_clip(root / "two" / "snack.mp4", seconds=4, fps=5)
    person = draw_clip(root / "two" / "sea.mp4", seconds=4, fps=8)
    records = [
        record(dog, [DOG]),
        record(Path(copy), [DOG]),
        record(other, [CAT, UNI], media={"duration": 90.0}),
        record(both, [DOG, GUITAR, CAT], media={"duration": 200.0}),
        record(snack, [HOT_DOG]),
        record(person, [BEACH], corrections={"added": [BEACH["id"]], "removed": [], "time": "x"}),
        record("moved/away.mp4", [UNI], media={"duration": 10.0}),
        failure(root / "one", "not_a_file"),
        failure("dead/link.mp4", "vanished"),
        failure("cut.mp4", "truncated") | {"id": "sha256:" + "0" * 64},
    ]
    results = write_results(root / "tags.jsonl", records)
    write_report(ReportConfig(results=(results,), out=root / "report"))
    return Page(browser, root / "report", records)


@pytest.fixture
def page(library: Page) -> Page:
    library.size(1280)
    return library.open()


@pytest.fixture(autouse=True)
def no_complaint(browser: Any) -> Iterator[None]:
    yield
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def ask(page: Page, text: str) -> list[str]:
    """Paths of what the box finds, in the order of the results."""
    page.run(
        "const q = document.getElementById('q'); q.value = arguments[0];"
        "q.dispatchEvent(new Event('input'))",
        text,
    )
    found = set(page.run("return found.map(row => row[0])"))
    keys = page.run("return vtag.rows.map(row => row[0])")
    return [one["path"] for one, key in zip(page.records, keys, strict=True) if key in found]


def hint(page: Page) -> str:
    return str(page.run("return document.querySelector('#hint:not([hidden])')?.innerText ?? ''"))


@pytest.fixture(scope="class")
def box(library: Page) -> Page:
    """The page, opened once: for what leaves nothing behind but words in the box."""
    return library.open()


class TestLanguage:
    @pytest.mark.parametrize(
        "query",
        [
            "dog", "DOG cat", "dog AND cat", "dog OR cat", "cat OR hot food", "NOT dog", "-cat",
            "dog -cat", "NOT (dog OR cat)", "(guitar OR hot) dog", '"hot dog"', '"dog hot"',
            '"hot d"*', "-dog -cat",
            "tag:dog", "path:dog", "-path:dog", 'path:"one"', "category:animal", "category:dog",
            "category:food -tag:pizza", "source:heard", "source:seen", "source:audio guitar",
            "source:heard dog", "score:>0.8", "score:>=0.9", "score:<0.6 -score:>0.8",
            "cat score:>0.5", "cat score:>=.5", "dog -cat score:>0.8", "path:two score:>0.8",
            "(dog OR cat) -source:heard score:<0.95", "guitar OR cat score:>0.8", "status:ok",
            "status:failed", "status:failed OR dog", "duration:>60", "duration:<=1:30",
            "duration:>=0:03:20", "duration:<4", "uni", "\u00fcn\u00ef", "UNI\u0308", "cafe",
            "caf\u00e9", "fete", '"OR"', "gui*", "animal dog", "path:two/both", "n-cat",
            "tag:n-dog",
        ],
    )  # fmt: skip
    def test_it_finds_what_vtag_search_finds(self, box: Page, tmp_path: Path, query: str) -> None:
        tags = box.folder.parent / "tags.jsonl"
        found = {hit.path for hit in search(query, [tags], limit=None, folder=tmp_path).hits}
        assert ask(box, query) == [one["path"] for one in box.records if one["path"] in found]
        assert hint(box) == ""

    def test_a_plain_word_may_be_a_part_and_a_phrase_is_whole_words(self, box: Page) -> None:
        guitars = [box.records[3]["path"]]
        assert ask(box, "tag:uitar") == ask(box, "guit") == guitars
        assert ask(box, '"uitar"') == ask(box, "uitar*") == ask(box, '"guit"') == []
        assert ask(box, '"guit"*') == guitars

    @pytest.mark.parametrize(
        ("typed", "as_if"),
        [
            ("-", ""), ("()", ""), ("dog OR", "dog"), ("dog AND ", "dog"), ("dog NOT", "dog"),
            ("dog -", "dog"), ("OR dog", "dog"), ('"hot d', "hot d*"),
            ("(dog OR cat", "dog OR cat"), ("dog tag:", "dog"), ("dog score:>", "dog"),
            ("source:h", "source:heard"),
            ("status:f", "status:failed"), ("-(dog OR cat", "NOT (dog OR cat)"),
            ("\u201chot dog\u201d", '"hot dog"'),
        ],
    )  # fmt: skip
    def test_what_is_not_complete_counts_as_far_as_it_goes(
        self, box: Page, typed: str, as_if: str
    ) -> None:
        assert ask(box, typed) == ask(box, as_if) != []
        ask(box, typed)
        assert hint(box) == ""

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("after:1:30", "vtag search"),
            ("dog before:2", "vtag search"),
            ("place:home", "There is no \u201cplace:\u201d"),
            ("source:smelt", "seen, heard or person"),
            ("status:fine", "ok, failed, gone"),
            ("score:0.8", "score:>0.8"),
            ("score:>80", "score:>0.8"),
            ("duration:>x", "duration:>1:30"),
            ("dog) cat", "without a \u201c(\u201d"),
            ("tag: dog", "right behind tag:"),
            ("?! dog", "no letter"),
        ],
    )
    def test_what_it_can_not_answer_it_says(self, box: Page, query: str, said: str) -> None:
        assert len(ask(box, query)) == len(box.records)  # and not none
        assert said in hint(box)


class TestQuery:
    def test_what_is_said_of_the_box_leaves_with_it(self, page: Page) -> None:
        ask(page, "place:home")
        page.run("location.hash = '#problems'")
        page.wait("return view === 'problems'")
        assert hint(page) == ""

    def test_by_a_person_is_the_filter_of_that_name(self, page: Page) -> None:
        page.choose("#f-source", "4")
        by_filter = page.names()
        page.one("#clear").click()
        assert ask(page, "source:person") == [page.records[5]["path"]]
        assert page.names() == by_filter == ["sea.mp4"]
        # What is added here counts like what a run has added.
        page.run("addTag(vtag.rows[4], 'snack.mp4', 'Pizza')")
        assert sorted(page.names()) == ["sea.mp4", "snack.mp4"]
        assert ask(page, "pizza score:>0.9") == [page.records[4]["path"]]
        assert ask(page, 'tag:"pizza" -source:person') == []

    def test_states_that_only_a_report_knows(self, page: Page) -> None:
        assert ask(page, "status:gone") == ["moved/away.mp4"]
        assert ask(page, "status:none") == []
        assert ask(page, "status:corrected") == []
        page.run("toggleWrong(vtag.rows[2], 'x', 'n-cat', 'cat')")
        assert ask(page, "status:corrected") == [page.records[2]["path"]]
        assert ask(page, "tag:cat") == [page.records[3]["path"]]

    def test_on_the_page_of_tags(self, page: Page) -> None:
        page.open("#tags")
        names = ".tag .what > a"
        ask(page, "dog OR source:heard")
        assert sorted(page.texts(names)) == ["dog", "guitar", "hot dog"]
        ask(page, "uni")
        assert page.texts(names) == ["\u00fcn\u00ef"]
        assert hint(page) == ""
        ask(page, "category:animal -cat path:x")
        assert page.texts(names) == ["dog"]
        assert "about videos" in hint(page)

    def test_only_what_was_asked_for_is_marked(self, page: Page) -> None:
        ask(page, "(dog score:>0.95 OR guitar) -beach")
        assert page.texts("#grid .chip.wanted") == ["guitar"]

    def test_it_stays_instant(self, browser: Any, tmp_path: Path) -> None:
        records = list(many_records(10_000))
        results = write_results(tmp_path / "tags.jsonl", records)
        write_report(ReportConfig(results=(results,), out=tmp_path / "report", thumbnails=False))
        page = Page(browser, tmp_path / "report", records).open()
        query = '(thing OR "group 3") -tag:12 score:>0.5 -path:2003 OR "clip 00001" duration:<4000'
        found = len(ask(page, query))
        assert 0 < found < 10_000
        took = page.run(
            "state.q = arguments[0] + ' x OR thing'; const t = performance.now(); showGrid();"
            "return performance.now() - t",
            query,
        )
        assert took < 1000  # a tenth of that on a quiet machine


class TestFoundByAPerson:
    def test_no_page_says_null(self, page: Page) -> None:
        addresses = ["#videos", "#tags", "#problems", "#corrections"]
        addresses += [f"#video={key}" for key in page.run("return vtag.rows.map(r => r[0])")]
        for said in (False, True):
            if said:
                page.run("toggleWrong(vtag.rows[0], 'x', 'n-dog', 'dog')")
            for address in addresses:
                page.open(address, fresh=False)
                if "=" in address:
                    page.wait("return panel.dialog.open")
                text = page.run("return document.body.innerText")
                assert "null" not in text
                assert "undefined" not in text

    def test_a_narrow_page_does_not_scroll_sideways(self, page: Page) -> None:
        page.size(360, 780)
        page.run("toggleWrong(vtag.rows[3], vtag.rows[3][2], 'n-cat', 'cat')")
        page.run(f"addTag(vtag.rows[3], vtag.rows[3][2], '{'w' * 90}')")
        long = "%22no%20such%20thing%22%20OR%20place:" + "x" * 60
        addresses = ["#tags", "#problems", "#corrections", f"#videos&q={long}"]
        addresses += [f"#video={key}" for key in page.run("return vtag.rows.map(r => r[0])")]
        addresses += ["#videos&category=Music+of+any+kind+and+age&tag=guitar"]
        for address in addresses:
            page.open(address, fresh=False)
            if "video=" in address:
                page.wait("return panel.dialog.open")
            wide = page.run(
                "return [document.documentElement, document.body, panel.dialog]"
                ".map(e => e.scrollWidth - e.clientWidth)"
            )
            assert max(wide) <= 0, address

    def test_another_page_begins_at_its_top_and_back_is_where_one_was(
        self, browser: Any, tmp_path: Path
    ) -> None:
        records = list(many_records(300))
        results = write_results(tmp_path / "tags.jsonl", records)
        write_report(ReportConfig(results=(results,), out=tmp_path / "report", thumbnails=False))
        page = Page(browser, tmp_path / "report", records).open()
        page.size(1280, 500)
        page.run("scrollTo(0, 900)")
        page.wait("return scrollY === 900")
        page.one('nav [data-view="tags"]').click()
        page.wait("return view === 'tags' && scrollY === 0")
        page.run("scrollTo(0, 700)")
        page.wait("return scrollY === 700")
        page.run("document.querySelectorAll('.tag .what > a')[12].click()")
        page.wait("return view === 'videos' && state.tags.length === 1 && scrollY === 0")
        page.driver.back()
        page.wait("return view === 'tags' && scrollY === 700")
        page.driver.back()
        page.wait("return view === 'videos' && scrollY === 900")
        page.run("document.querySelectorAll('#grid a.open')[20].click()")
        page.wait("return panel.dialog.open")
        page.driver.back()
        page.wait("return !panel.dialog.open && scrollY === 900")

    @pytest.mark.parametrize("way", ["escape", "back", "close", "next"])
    def test_a_player_stops_when_its_video_is_left(self, page: Page, way: str) -> None:
        page.choose("#sort", "order")
        page.run("location.hash = `#video=${vtag.rows[0][0]}`")
        page.wait("return panel.dialog.open && panel.media")
        page.run("globalThis.played = panel.media; played.muted = true; played.play()")
        page.wait("return played.currentTime > 0.1")
        if way == "escape":
            page.keys(ESCAPE)
        elif way == "back":
            page.driver.back()
        elif way == "close":
            page.one('[aria-label="Close"]').click()
        else:
            page.keys("n")
        page.wait("return played.paused && !played.hasAttribute('src') && panel.media !== played")
        # What a browser still tells of it falls into nothing.
        for event in ("timeupdate", "loadedmetadata", "error"):
            page.run("played.dispatchEvent(new Event(arguments[0]))", event)
        if way == "next":
            assert page.run("return document.getElementById('play-note').hidden")

    def test_one_that_is_closed_before_it_is_there_stays_closed(self, page: Page) -> None:
        page.run("openPanel(vtag.rows[0]); closePanel()")
        page.run("return detailOf(vtag.rows[0]).then(() => new Promise((go) => setTimeout(go)))")
        assert not page.run("return panel.dialog.open")

    def test_a_found_video_opens_at_the_moment_on_its_card(self, page: Page) -> None:
        page.choose("#sort", "order")
        ask(page, "hot dog")
        assert page.texts("#grid .mark") == ["at 0:02"]
        page.one("#grid a.open").click()
        page.wait("return panel.dialog.open")
        page.time_reached(2.2)  # its moment, not the beginning of its segment
        page.keys(ESCAPE)
        page.wait("return document.activeElement.classList.contains('open')")
        ask(page, "guitar")  # heard, so no picture of it: where it is surest
        page.run("document.querySelector('#grid a.open').focus()")
        page.keys(ENTER)
        page.wait("return panel.dialog.open")
        page.time_reached(2.0)
        page.keys(ESCAPE)
        page.wait("return !panel.dialog.open")
        ask(page, "dog source:seen")
        page.one("#grid a.open").click()
        page.wait("return panel.dialog.open")
        page.keys("n")
        page.wait("return panel.row === vtag.rows[1]")
        page.time_reached(1.2)

    def test_a_failed_one_was_not_tagged_and_did_not_go(self, page: Page) -> None:
        for name in ("dead/link.mp4", "cut.mp4"):
            page.open_video(name)
            text = page.one("#panel").text
            assert "Tagged by" not in text
            assert "not where it was" not in text
            assert not page.one("#panel .names p").text.endswith("·")
        page.open_video("dog.mp4")
        assert "Tagged by vtag-base" in page.one("#panel").text

    def test_what_counts_as_a_video(self, page: Page) -> None:
        assert page.one("#count").text == "7 videos · 3 could not be tagged"
        assert page.one("footer").text.startswith("7 videos · 3 could not be tagged · made")
        ask(page, "dog")
        assert page.one("#count").text == "4 of 7 videos"
        ask(page, "status:failed")
        assert page.one("#count").text == "0 of 7 videos · 3 could not be tagged"
        page.one("#clear").click()
        page.choose("#f-status", "gone")
        assert page.names() == ["away.mp4"]

    def test_a_correction_names_the_copy_that_it_was_made_on(self, page: Page) -> None:
        for at in (0, 1):
            page.open_video(os.path.basename(page.records[at]["path"]))
            page.one('[data-wrong="n-dog"]').click()
            page.open("#corrections", fresh=False)
            link = page.one("#view-corrections .list a")
            assert link.text == os.path.basename(page.records[at]["path"])
            assert page.one("#view-corrections .folder").text == str(
                Path(page.records[at]["path"]).parent
            )
            link.click()
            page.wait("return panel.row === vtag.rows[arguments[0]]", at)
            page.run("localStorage.clear()")

    def test_escapes_are_those_of_the_report(self, page: Page) -> None:
        from vtag.report_entries import shown

        names = ["a\n\t\r\x1b\x7f\x9f", "\udcff\udc80\ud800", "\u202e\u2066\u200f\u2028"]
        names += ["é 日 🐈\u200d⬛"]
        given = json.dumps(names)
        assert page.run(f"return {given}.map(printable)") == [shown(name) for name in names]
