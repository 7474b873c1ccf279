"""YouTube-8M files: checksums against published vectors, there and back, damage and malice."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtag.errors import ConfigError, MediaError, OutputError
from vtag.tf_example import MAX_VALUES, Example, ExampleError, encode_example, parse_example
from vtag.tfrecord import (
    MAX_RECORD_BYTES,
    crc32c,
    masked_crc32c,
    read_record_at,
    read_records,
    write_records,
)
from vtag.youtube8m import (
    SegmentRating,
    Video,
    dequantise,
    quantise,
    read_videos,
    read_vocabulary,
    write_videos,
)


class TestChecksum:
    @pytest.mark.parametrize(
        ("data", "crc"),
        [  # RFC 3720, B.4, and the check value of CRC-32C
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
            (bytes(range(31, -1, -1)), 0x113FDB5C),
            (b"123456789", 0xE3069283),
            (b"", 0),
        ],
    )
    def test_published_vectors(self, data: bytes, crc: int) -> None:
        assert crc32c(data) == crc

    @pytest.mark.parametrize("size", [63, 64, 67, 1023, 1024, 1025, 5000, 1024 * 257 + 3])
    def test_blocks_give_what_single_bits_give(self, size: int) -> None:
        data = np.random.default_rng(size).bytes(size)
        if size > 5000:  # two runs of blocks; the loop below would take a second
            halves = crc32c(data[:5000] + bytes(size - 5000)) ^ crc32c(bytes(5000) + data[5000:])
            assert crc32c(data) == halves ^ crc32c(bytes(size))
            return
        register = 0xFFFFFFFF
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
        assert crc32c(data) == register ^ 0xFFFFFFFF


class TestRecords:
    def test_bytes_on_disk(self, tmp_path: Path) -> None:
        # Layout of record_writer.h, with a CRC of RFC 3720 masked by hand:
        # 0x8A9136AA rotated right by 15 is 0x6D551522, plus 0xA282EAD8 is 0x0FD7FFFA.
        path = tmp_path / "a.tfrecord"
        assert write_records(path, [bytes(32)]) == 1
        data = path.read_bytes()
        assert data[:8] == struct.pack("<Q", 32)
        assert data[12:44] == bytes(32)
        assert data[44:] == struct.pack("<I", 0x0FD7FFFA)

    @pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
    def test_there_and_back(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        payloads = [b"", b"x", bytes(3000)]
        assert write_records(path, iter(payloads)) == 3
        assert [record.data for record in read_records(path)] == payloads
        assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith("gz")

    def test_a_record_is_found_by_its_offset(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [b"one", b"", b"three"])
        for record in read_records(path):
            assert read_record_at(path, record.offset) == record.data
        with pytest.raises(MediaError, match=r"record at byte 1: .*checksum"):
            read_record_at(path, 1)

    @pytest.mark.parametrize("at", [0, 9, 20, -1])
    def test_one_flipped_bit_is_found(self, tmp_path: Path, at: int) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [b"first", bytes(100)])
        data = bytearray(path.read_bytes())
        data[at % 116 + 21] ^= 4
        path.write_bytes(data)
        with pytest.raises(MediaError, match=r"a\.tfrecord: record 1: the checksum") as caught:
            list(read_records(path))
        assert caught.value.code == "corrupt"

    @pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
    @pytest.mark.parametrize("left", [1, 11, 12, 60])
    def test_a_cut_off_file_gives_what_is_whole(self, tmp_path: Path, name: str, left: int) -> None:
        path = tmp_path / name
        write_records(path, [np.random.default_rng(n).bytes(50) for n in range(2)])
        first = 66 if name == "a.tfrecord" else 0
        path.write_bytes(path.read_bytes()[: first + left])
        with pytest.raises(MediaError, match=r"record [01]: ") as caught:
            assert len(list(read_records(path))) < 2
        assert caught.value.code in ("truncated", "corrupt")

    def test_an_absurd_length_is_refused_before_memory_is_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        head = struct.pack("<Q", MAX_RECORD_BYTES + 1)
        path.write_bytes(head + struct.pack("<I", masked_crc32c(head)))
        with pytest.raises(MediaError, match="over the limit") as caught:
            list(read_records(path))
        assert caught.value.code == "too_large"

    def test_damage_passes_only_where_checks_are_off(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [b"abcd"])
        data = path.read_bytes()
        path.write_bytes(data[:12] + b"abcX" + data[16:])
        assert [r.data for r in read_records(path, verify=False)] == [b"abcX"]

    def test_missing_and_unwritable(self, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match="no/a: can not be read") as caught:
            list(read_records(tmp_path / "no" / "a"))
        assert caught.value.code == "vanished"
        with pytest.raises(OutputError, match="can not be written"):
            write_records(tmp_path / "no" / "a", [])

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [b"old"])

        def broken() -> object:
            yield b"new"
            raise MediaError("in the middle", code="corrupt")

        with pytest.raises(MediaError, match="in the middle"):
            write_records(path, broken())
        assert [r.data for r in read_records(path)] == [b"old"]
        assert [p.name for p in tmp_path.iterdir()] == ["a.tfrecord"]


class TestExample:
    # By hand from example.proto: Example{1: Features{1: entry{1: "a", 2: Feature{3: [1, -1]}}}}.
    MINUS_ONE = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    INTEGERS = b"\x1a\x0d" + b"\x0a\x0b\x01" + MINUS_ONE
    WIRE = b"\x0a\x16" + b"\x0a\x14" + b"\x0a\x01a" + b"\x12\x0f" + INTEGERS

    def test_bytes_of_the_format(self) -> None:
        example = Example({"a": np.array([1, -1])})
        assert encode_example(example) == self.WIRE
        assert parse_example(self.WIRE).context["a"].tolist() == [1, -1]

    def test_unpacked_numbers_and_unknown_fields(self) -> None:
        numbers = b"\x1a\x04" + b"\x08\x05\x08\x07"  # [5, 7], one field each
        floats = b"\x12\x05" + b"\x0d" + struct.pack("<f", 1.5)
        unknown = b"\x7a\x02zz"  # field 15
        for feature, expected in ((numbers, [5, 7]), (floats, [1.5])):
            body = b"\x0a\x01a" + b"\x12" + bytes([len(feature)]) + feature + unknown
            entry = b"\x0a" + bytes([len(body)]) + body
            wire = b"\x0a" + bytes([len(entry)]) + entry + unknown
            assert parse_example(wire).context["a"].tolist() == expected

    @pytest.mark.parametrize(
        ("wire", "message"),
        [
            (b"\x0a", "ends within a number"),
            (b"\x0a\x05ab", "5 bytes announced, 2 left"),
            (b"\x0a" + b"\xff" * 10 + b"\x01", "more than ten bytes"),
            (b"\x0b", "wire type 3"),
            (b"\x02\x00", "the number 0"),
            (b"\x0a\x05\x0a\x03\x0a\x01\xff", "not UTF-8"),
        ],
    )
    def test_bad_wire(self, wire: bytes, message: str) -> None:
        with pytest.raises(ExampleError, match=message):
            parse_example(wire)

    def test_endless_values_are_refused(self) -> None:
        with pytest.raises(ExampleError, match=f"more than {MAX_VALUES}"):
            parse_example(encode_example(Example({"a": (b"",) * (MAX_VALUES + 1)})))
        with pytest.raises(ExampleError, match=f"more than {MAX_VALUES}"):
            parse_example(encode_example(Example({"a": np.zeros(MAX_VALUES + 1, np.int64)})))
        with pytest.raises(ExampleError, match="bytes of floats"):
            parse_example(encode_example(Example({"a": np.zeros(MAX_VALUES + 1, np.float32)})))

    @settings(max_examples=300)
    @given(st.data())
    def test_any_bytes_give_an_example_or_an_example_error(self, data: st.DataObject) -> None:
        wire = bytearray(data.draw(st.sampled_from([self.WIRE, frame_record(), b""])))
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(wire)))
            wire[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        with contextlib.suppress(ExampleError):
            assert isinstance(parse_example(bytes(wire)), Example)


def frame_record(**context: object) -> bytes:
    """Three seconds in which rgb is 4 codes wide and audio 2, drawn here."""
    return encode_example(
        Example(
            {"id": (b"vid",), "labels": np.array([7, 3]), **context},
            {"rgb": [(bytes([n, 0, 255, 128]),) for n in range(3)], "audio": [(b"\x00\xff",)] * 3},
        )
    )


class TestVideos:
    @pytest.mark.parametrize("key", ["id", "video_id"])
    def test_frame_level(self, tmp_path: Path, key: str) -> None:
        path = tmp_path / "a.tfrecord"
        record = encode_example(
            Example(
                {key: (b"vid",), "labels": np.array([7, 3])},
                {"rgb": [(bytes([n, 0, 255, 128]),) for n in range(3)]},
            )
        )
        write_records(path, [record])
        (video,) = read_videos(path)
        assert (video.id, video.labels, video.level) == ("vid", (3, 7), "frame")
        assert set(video.rows) == {"visual"}
        assert video.rows["visual"].shape == (3, 4)
        # 0 and 255 of the reference's table; 128 is 0.015656 there.
        assert video.rows["visual"][0].tolist() == pytest.approx(
            [-1.9921875, -1.9921875, 2.0078125, 0.015656], abs=1e-6
        )
        assert video.rows["visual"][2, 0] == pytest.approx(2 * 4 / 255 - 1.9921875, abs=1e-6)

    @pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
    def test_there_and_back(self, tmp_path: Path, name: str) -> None:
        random = np.random.default_rng(1)
        rows = {
            "visual": dequantise(random.integers(0, 256, (5, 1024)).astype(np.uint8)),
            "audio": dequantise(random.integers(0, 256, (5, 128)).astype(np.uint8)),
        }
        rated = (SegmentRating(0, 5, 11, True), SegmentRating(40, 45, 3, False))
        videos = [
            Video("frames", (3, 11), rows, "frame", rated),
            Video("mean", (), {s: r.mean(axis=0, keepdims=True) for s, r in rows.items()}, "video"),
        ]
        path = tmp_path / name
        assert write_videos(path, videos) == 2
        for before, after in zip(videos, read_videos(path), strict=True):
            assert (before.id, before.labels, before.level) == (after.id, after.labels, after.level)
            assert before.segments == after.segments
            for stream in rows:
                np.testing.assert_array_equal(before.rows[stream], after.rows[stream])

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (b"", "no id or video_id"),
            (encode_example(Example({"id": (b"a",)})), "neither frames nor means"),
            (
                encode_example(Example({"id": (b"a",)}, {"rgb": [(b"12",), (b"1",)]})),
                "frames of rgb differ in size",
            ),
            (
                encode_example(Example({"id": (b"a",)}, {"rgb": [(b"12", b"12")]})),
                "not one string of bytes",
            ),
            (
                encode_example(
                    Example({"id": (b"a",), "mean_rgb": np.array([1, np.nan], np.float32)})
                ),
                "mean_rgb holds NaN",
            ),
            (frame_record(labels=np.array([-4])), "class number -4"),
            (frame_record(labels=(b"cat",)), "labels is not a list of whole numbers"),
            (frame_record(segment_labels=np.array([4])), "segment lists differ"),
            (frame_record(id=(b"a", b"b")), "the id is not one string"),
            (b"\x0a\x05ab", "5 bytes announced"),
        ],
    )
    def test_another_record_is_named(self, tmp_path: Path, record: bytes, message: str) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [frame_record(), record])
        with pytest.raises(MediaError, match=r"a\.tfrecord: record 1: .*" + message) as caught:
            list(read_videos(path))
        assert caught.value.code == "corrupt"

    def test_a_file_is_read_lazily(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        write_records(path, [frame_record(), b"nonsense"])
        assert next(read_videos(path)).id == "vid"

    def test_a_gzip_file_that_is_no_gzip_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tfrecord"
        path.write_bytes(b"\x1f\x8b" + bytes(40))
        with pytest.raises(MediaError, match="record 0: the gzip stream is damaged"):
            list(read_videos(path))
        path.write_bytes(gzip.compress(bytes(12)))
        with pytest.raises(MediaError, match="record 0: the checksum"):
            list(read_videos(path))


class TestQuantisation:
    def test_published_examples(self) -> None:
        codes = quantise([-2, -1, 0, 1, 2, 9, -9])
        assert codes.tolist() == [0, 64, 128, 191, 255, 255, 0]
        assert dequantise(codes)[:5].tolist() == pytest.approx(
            [-1.9921875, -0.988266, 0.015656, 1.003891, 2.0078125], abs=1e-6
        )

    def test_every_code_comes_back(self) -> None:
        codes = np.arange(256, dtype=np.uint8)
        assert quantise(dequantise(codes)).tolist() == codes.tolist()

    def test_the_error_is_half_a_step_around_the_offset(self) -> None:
        values = np.linspace(-2, 2, 4001)
        error = dequantise(quantise(values)) - values - 4 / 512
        assert np.abs(error).max() <= 4 / 255 / 2 + 1e-6


class TestVocabulary:
    HEAD = "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,X\n"

    def test_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "vocabulary.csv"
        path.write_text(
            self.HEAD + '5,12,/m/05," Cat, big",u,Pets,,Fun,"two\nlines"\n6,9,/m/06,,,,,,\n'
        )
        cat, nameless = read_vocabulary(path)
        assert (cat.index, cat.id, cat.name, cat.train_videos) == (5, "/m/05", "Cat, big", 12)
        assert cat.verticals == ("Pets", "Fun")
        assert (nameless.name, nameless.verticals) == ("/m/06", ())

    def test_segment_vocabulary(self, tmp_path: Path) -> None:
        path = tmp_path / "segment_vocabulary.csv"
        path.write_text("Index,KnowledgeGraphId,Name,PositiveSegmentCount\n3,/m/03,Dog,90\n")
        (dog,) = read_vocabulary(path)
        assert (dog.index, dog.name, dog.train_videos) == (3, "Dog", -1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("Index,Name\n", "no column KnowledgeGraphId"),
            ("Index,KnowledgeGraphId,Name\nx,/m/0,a\n", "line 2: index 'x'"),
            ("Index,KnowledgeGraphId,Name\n1,/m/0,a\n1,/m/1,b\n", "an index is there twice"),
        ],
    )
    def test_another_table_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "vocabulary.csv"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_vocabulary(path)
