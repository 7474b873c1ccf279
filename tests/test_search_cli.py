"""`vtag search` and `vtag similar` as they are called: output, exit status, the player."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_library import append, record, tag, write

from vtag.cache import CacheEntry, FeatureCache
from vtag.cli_search import add_search_commands
from vtag.config import Sampling
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.features import ClipFeatures
from vtag.records import Features, Media
from vtag.search_query import QueryError


class KnownFeatures:
    """Stands where the pipeline does, with features that were made before."""

    def __init__(self, folder: Path, clips: dict[str, Features]) -> None:
        self.cache = FeatureCache(folder)
        self.sampling = Sampling()
        self.clips = clips
        for name, features in clips.items():
            rule = self.sampling.fingerprint()
            key = FeatureCache.key(f"sha256:{name}", features.made_by, rule)
            self.cache.put(key, CacheEntry(features, {}))

    def __enter__(self) -> KnownFeatures:
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def features(self, path: str) -> ClipFeatures:
        name = Path(path).name
        return ClipFeatures(f"sha256:{name}", Media(duration=1.0), {"visual": self.clips[name]})


def vtag(*argv: str, pipeline: KnownFeatures | None = None) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers()

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, allow_abbrev=False)
        made.set_defaults(run=run)
        made.add_argument("-q", "--quiet", action="store_true")
        return made

    def flags(made: argparse.ArgumentParser) -> None:
        made.add_argument("--cache")
        made.add_argument("--no-cache", action="store_true")

    add_search_commands(command, flags)
    args = parser.parse_args(argv)
    status: int = args.run(args, lambda: pipeline)
    return status


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clips, in the folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTAG_CACHE_DIR", str(tmp_path / "cache"))
    return write(
        tmp_path / "tags.jsonl",
        record("b.mp4", tag("dog", 0.8, (70, 80)), tag("beach", 0.7)),
        record("a.mp4", tag("dog", 0.9, (2, 11.5), (20, 25)), tag("beach", 0.95, (0, 30))),
        record("bad.mp4", failed=True),
    )


@pytest.fixture
def player(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program on the path: a player that writes down how it was called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    mpv = programs / "mpv"
    mpv.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"open({str(tmp_path / 'called')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
        "print('talk of the player')\n"
    )
    mpv.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path / "called"


class TestSearch:
    def test_a_line_per_video_best_first_with_times(
        self, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert vtag("search", "dog", "AND", "beach") == 0
        assert capsys.readouterr().out.splitlines() == [
            "0.90  a.mp4  beach 0:00-0:30; dog 0:02-0:11, 0:20-0:25",
            "0.70  b.mp4  dog 1:10-1:20; beach",
        ]

    def test_json_is_an_object_per_line(
        self, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert vtag("search", "dog score:>0.85", "--json", "--library", str(library)) == 0
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        assert (found["path"], found["score"]) == ("a.mp4", 0.9)
        assert [s["start"] for s in found["matches"][0]["segments"]] == [2, 20]

    def test_nothing_is_status_1_and_advice(
        self, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert vtag("search", "dog and beach") == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == "vtag: nothing matches; 'and' is a word here, the operator is AND\n"

    @pytest.mark.parametrize(
        ("argv", "says"),
        [
            (["dog AND"], "character 8"),
            (["dog", "--limit", "-1"], "--limit"),
            (["dog", "--library", "none.jsonl"], "none.jsonl"),
        ],
    )
    def test_wrong_use_is_a_config_error(self, argv: list[str], says: str, library: Path) -> None:
        with pytest.raises(ConfigError, match=says):
            vtag("search", *argv)

    def test_the_library_must_be_named_where_there_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match="--library"):
            vtag("search", "dog")

    def test_more_than_the_limit_is_said(
        self, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert vtag("search", "dog", "--limit", "1") == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 1
        assert err == "vtag: 1 of 2 videos; --limit 0 shows all\n"
        assert vtag("search", "dog", "--limit", "0") == 0
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_failed_ones_say_why(self, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert vtag("search", "status:failed") == 0
        assert capsys.readouterr().out == "1.00  bad.mp4  failed: no [corrupt]\n"

    @pytest.mark.parametrize(
        "argv", [["-dog"], ["-dog", "beach"], ["beach", "-dog"], ["--", "-dog"], ["-d*"], ["-hat"]]
    )
    def test_a_query_may_begin_with_minus(
        self, argv: list[str], library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also with the letter of a flag, as -h."""
        write(library, record("a dog.mp4", tag("dog"), tag("hat")), record("c.mp4", tag("beach")))
        assert vtag("search", "--limit", "1", *argv) == 0
        assert capsys.readouterr().out.split()[1] == "c.mp4"

    @pytest.mark.parametrize("slip", ["-limit", "-json", "-qh", "-hq", "--dog"])
    def test_flags_and_slips_in_them_are_no_queries(self, slip: str, library: Path) -> None:
        with pytest.raises(SystemExit):
            vtag("search", "dog", slip)

    def test_hostile_names_can_not_drive_the_terminal(
        self, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evil = "\x1b[2J\r\n\u202e\udcff evil"
        append(
            library,
            record(f"1{evil}", tag(f"n{evil}", 0.9, (0, 1))),
            record(f"2{evil}", failed=True),
        )
        assert vtag("search", "evil") == 0
        out = capsys.readouterr().out
        assert len(out.splitlines()) == 2
        assert not set(out) & set("\x1b\r\u202e")
        out.encode()  # a lone surrogate would raise
        with pytest.raises(QueryError) as caught:
            vtag("search", f'"{evil}"')
        assert "\x1b" not in str(caught.value)

    def test_many_tags_and_segments_are_cut_with_a_sign(
        self, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spans = [(float(n), n + 0.5) for n in range(90)]
        append(library, record("many.mp4", *(tag(f"zebra {n}", 0.9, *spans) for n in range(30))))
        assert vtag("search", "zebra") == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith("0:03-0:03 …; …")
        assert len(line) < 250


class TestOpen:
    @pytest.mark.parametrize("name", ["-x --script=evil.lua.mp4", "http:/evil/a.mp4", "a\nb.mp4"])
    def test_the_first_match_is_played_at_its_time(
        self, name: str, library: Path, player: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a video")
        append(library, record(name, tag("zebra", 0.9, (2.5, 11), (20, 25))))
        assert vtag("search", "zebra", "--open") == 0
        assert json.loads(player.read_text()) == ["--start=2.500", "--", os.path.abspath(name)]
        out, err = capfd.readouterr()
        assert "talk of the player" in err
        assert "talk of the player" not in out

    def test_together_is_played_from_where_it_is_together(
        self, library: Path, player: Path
    ) -> None:
        Path("z.mp4").write_bytes(b"a video")
        append(library, record("z.mp4", tag("zebra", 0.9, (2, 11)), tag("Café", 0.8, (7, 9))))
        assert vtag("search", "zebra cafe", "--together", "--open") == 0
        assert json.loads(player.read_text())[0] == "--start=7.000"

    def test_a_path_is_looked_for_beside_its_library_too(
        self, library: Path, player: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "c.mp4").write_bytes(b"a video")
        write(other / "t.jsonl", record("c.mp4", tag("zebra", 0.9, (-5, 1))))
        assert vtag("search", "zebra", "--library", "other/t.jsonl", "--open") == 0
        assert json.loads(player.read_text()) == ["--start=0.000", "--", str(other / "c.mp4")]

    def test_vlc_gets_an_address_of_a_file(
        self, library: Path, player: Path, tmp_path: Path
    ) -> None:
        shutil.move(tmp_path / "programs" / "mpv", tmp_path / "programs" / "vlc")
        path = tmp_path / "a b#c%.mp4"
        path.write_bytes(b"a video")
        append(library, record(path.name, tag("zebra", 0.9, (3, 4))))
        vtag("search", "zebra", "--open")
        called = json.loads(player.read_text())
        assert called == ["--start-time=3.000", "--", f"file://{tmp_path}/a%20b%23c%25.mp4"]

    def test_without_a_player_it_says_what_to_install(
        self,
        library: Path,
        player: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        Path("a.mp4").write_bytes(b"a video")
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(EnvironmentProblem, match="install mpv"):
            vtag("search", "dog", "--open")
        assert len(capsys.readouterr().out.splitlines()) == 2  # what was found is shown first

    def test_a_video_that_is_gone_is_said(self, library: Path, player: Path) -> None:
        with pytest.raises(ConfigError, match=r"a\.mp4: no such file"):
            vtag("search", "dog", "--open")
        append(library, record("nul\0.mp4", tag("zebra")))
        with pytest.raises(ConfigError, match="no such file"):
            vtag("search", "zebra", "--open")
        assert not player.exists()


class TestSimilar:
    @pytest.fixture
    def pipeline(self, tmp_path: Path, library: Path) -> KnownFeatures:
        """The clip points along the first axis; 0.6 and 0.8 are the cosines of the others."""
        rows = {"clip.mp4": [1, 0], "a.mp4": [0.6, 0.8], "b.mp4": [0.8, 0.6]}
        clips = {
            name: Features(np.array([row], np.float16), np.zeros(1), "net@1")
            for name, row in rows.items()
        }
        for name in rows:
            Path(name).write_bytes(b"a video")
        append(library, record("clip.mp4"))
        return KnownFeatures(tmp_path / "cache", clips)

    def test_the_most_alike_first_and_not_the_clip_itself(
        self, pipeline: KnownFeatures, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert vtag("similar", "clip.mp4", pipeline=pipeline) == 0
        out, err = capsys.readouterr()
        assert out.splitlines() == ["0.80  b.mp4  looks 0.80", "0.60  a.mp4  looks 0.60"]
        assert err == ""

    def test_a_copy_elsewhere_is_found(
        self, pipeline: KnownFeatures, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("copy.mp4").write_bytes(b"a video")
        append(library, {**record("copy.mp4"), "id": "sha256:clip.mp4"})
        assert vtag("similar", "clip.mp4", "--limit", "1", "--json", pipeline=pipeline) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["path"], round(found["similarity"], 3)) == ("copy.mp4", 1.0)

    def test_those_without_features_are_counted(
        self, pipeline: KnownFeatures, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        append(library, record("new.mp4"))
        assert vtag("similar", "clip.mp4", pipeline=pipeline) == 0
        assert "1 of 3 videos have no features" in capsys.readouterr().err
        write(library, record("new.mp4"))
        assert vtag("similar", "clip.mp4", pipeline=pipeline) == 1

    def test_those_that_lack_the_streams_of_the_clip_are_told_apart(
        self, pipeline: KnownFeatures, library: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Their features are made: `vtag extract` would find nothing more."""
        append(library, record("mute.mp4"), record("new.mp4"))
        rule = pipeline.sampling.fingerprint()
        nothing = Features(np.zeros((0, 2), np.float16), np.zeros(0), "net@1")
        key = FeatureCache.key("sha256:mute.mp4", "net@1", rule)
        pipeline.cache.put(key, CacheEntry(nothing, {}))
        assert vtag("similar", "clip.mp4", pipeline=pipeline) == 0
        err = capsys.readouterr().err
        assert "1 of 4 videos have no features" in err
        assert (
            "1 of 4 videos were not compared: they have no pictures, and the clip has nothing else"
            in err
        )

    def test_it_plays_the_nearest(self, pipeline: KnownFeatures, player: Path) -> None:
        assert vtag("similar", "clip.mp4", "--open", pipeline=pipeline) == 0
        assert json.loads(player.read_text()) == ["--start=0.000", "--", os.path.abspath("b.mp4")]

    def test_without_a_cache_it_is_wrong_use(self, pipeline: KnownFeatures) -> None:
        with pytest.raises(ConfigError, match="--no-cache"):
            vtag("similar", "clip.mp4", "--no-cache", pipeline=pipeline)
