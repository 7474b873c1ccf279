"""Settings: flag > VTAG_* > the folder's file > the user's file > default, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vtag.cli import build_parser, main
from vtag.cli_config import model_names, template
from vtag.cli_parse import parse_arguments, parsers_of, schema_of
from vtag.errors import ConfigError
from vtag.settings import Settings
from vtag.settings_files import FOLDER_KEYS, OTHER_VARIABLES, odd_variables
from vtag.settings_schema import typed_value


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VTAG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def user_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "xdg" / "vtag" / "vtag.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def folder_file(text: str) -> Path:
    Path("vtag.toml").write_text(text)
    return Path("vtag.toml")


def parsed(*words: str, **environment: str) -> Any:
    return parse_arguments(build_parser(), words, environment)


RUN = ("run", "videos", "--out", "t.jsonl")


def test_each_place_counts_more_than_the_one_before(tmp_path: Path) -> None:
    assert parsed(*RUN).top_k == 20
    user_file(tmp_path, "top-k = 1\n[run]\ntop-k = 2\n")
    assert parsed(*RUN).top_k == 2
    assert parsed("tag", "a").top_k == 1
    folder_file("top-k = 3\n")
    assert parsed(*RUN).top_k == 3
    folder_file("top-k = 3\n[run]\ntop_k = 4\n")  # with _ too
    assert parsed(*RUN).top_k == 4
    assert parsed(*RUN, VTAG_TOP_K="5").top_k == 5
    assert parsed(*RUN, VTAG_TOP_K="5", VTAG_RUN_TOP_K="6").top_k == 6
    assert parsed(*RUN, "--top-k", "7", VTAG_TOP_K="5").top_k == 7
    assert parsed(*RUN, VTAG_TOP_K="").top_k == 4  # an empty variable says nothing


def test_a_needed_flag_may_be_set(tmp_path: Path) -> None:
    user_file(tmp_path, '[run]\nout = "~/tags.jsonl"\n')
    args = parsed("run", "videos")
    assert args.out == os.path.expanduser("~/tags.jsonl")
    assert args.inputs == ["videos"]
    assert parsed("run", "videos", VTAG_RUN_OUT="x.jsonl").out == "x.jsonl"


def test_switches_and_flags_that_add_up(tmp_path: Path) -> None:
    user_file(
        tmp_path,
        "no-cache = true\nverbose = 1\n[train]\nmulti-label = true\n"
        '[sidecar]\nformat = ["xmp", "csv"]\n',
    )
    assert parsed(*RUN).no_cache is True
    assert parsed(*RUN, VTAG_NO_CACHE="off").no_cache is False
    train = ("train", "data", "--out", "m")
    assert parsed(*train).single_label is False
    assert parsed(*train, "--single-label").single_label is True
    assert parsed(*RUN).verbose == 1
    assert parsed(*RUN, "-vv").verbose == 2  # replaced and not added to
    assert parsed("sidecar", "t").format == ["xmp", "csv"]
    assert parsed("sidecar", "t", "--format", "vtt").format == ["vtt"]
    assert parsed("sidecar", "t", VTAG_SIDECAR_FORMAT="nfo,vtt").format == ["nfo", "vtt"]


def test_a_shared_setting_leaves_a_flag_of_another_meaning_alone(tmp_path: Path) -> None:
    user_file(tmp_path, 'batch-size = "auto"\n')  # clips per step in train: another flag
    assert parsed(*RUN).batch_size == "auto"
    assert parsed("train", "data", "--out", "m").batch_size is None
    assert parsed("train", "d", "--out", "m", VTAG_TRAIN_BATCH_SIZE="8").batch_size == 8


def test_the_variables_of_before_keep_their_meaning() -> None:
    schema = schema_of(build_parser())
    assert schema.variables()["VTAG_CACHE_DIR"][1].name == "--cache"
    assert "VTAG_CACHE" not in schema.variables()
    assert parsed(*RUN, VTAG_CACHE_DIR="c").cache == "c"
    # `vtag ensemble --weights` is VTAG_ENSEMBLE_WEIGHTS, and not the folder of weights.
    assert not OTHER_VARIABLES & set(schema.variables())
    assert parsed("ensemble", "a", "b", "--out", "o", VTAG_WEIGHTS="/w").weights is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('devise = "cpu"', "vtag.toml:1: no setting 'devise'; did you mean device?"),
        (
            "\n\n[run]\nworker = 2",
            "vtag.toml:4: no setting 'worker' of [run]; did you mean workers",
        ),
        ("[rnu]\na = 1", "vtag.toml:1: no command 'rnu'; did you mean [run]?"),
        ("workers = 2", "vtag.toml:1: no setting 'workers'; it belongs to a command: put it below"),
        ('top-k = "3"', "vtag.toml:1: 'top-k' is a whole number, got '3'"),
        ("top-k = true", "vtag.toml:1: 'top-k' is a whole number, got True"),
        ("threshold = [1]", "vtag.toml:1: 'threshold' is a number"),
        ('sampling = "keyframe"', "'sampling' can not be 'keyframe'; did you mean keyframes?"),
        ('no-cache = "yes"', "'no-cache' is true or false, got 'yes'"),
        ("device = = 1", "vtag.toml: is no TOML"),
        ("device = 1\ndevice = 2", "vtag.toml: is no TOML"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(
    text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_file(text)
    assert main(["tag", "a.mp4"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_mistake_in_a_variable_names_it() -> None:
    with pytest.raises(ConfigError, match="VTAG_TOP_K: 'top-k' is a whole number, got 'many'"):
        parsed(*RUN, VTAG_TOP_K="many")
    with pytest.raises(ConfigError, match="VTAG_NO_CACHE: 'no-cache' is true or false"):
        parsed(*RUN, VTAG_NO_CACHE="maybe")


def test_files_that_are_none(tmp_path: Path) -> None:
    folder_file("# " + "x" * (1 << 20))
    with pytest.raises(ConfigError, match="no file of settings"):
        parsed(*RUN)
    Path("vtag.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        parsed(*RUN)
    Path("vtag.toml").unlink()
    os.mkfifo("vtag.toml")  # to open it would wait for a writer
    with pytest.raises(ConfigError, match="can not be read"):
        parsed(*RUN)
    with pytest.raises(ConfigError, match="VTAG_CONFIG names it"):
        parsed(*RUN, VTAG_CONFIG="none.toml")


def test_vtag_config_names_the_only_file(tmp_path: Path) -> None:
    user_file(tmp_path, "top-k = 1")
    folder_file("top-k = 2")
    other = tmp_path / "other.toml"
    other.write_text('threshold = 0.5\n[run]\nout = "mine.jsonl"')
    args = parsed("run", "v", VTAG_CONFIG=str(other))
    assert (args.top_k, args.threshold, args.out) == (20, 0.5, "mine.jsonl")
    assert parsed(*RUN, VTAG_CONFIG=os.devnull).top_k == 20


class TestTheFileOfAFolder:
    """It may come with the videos, from anybody."""

    # Names a place to write or to read, starts a program, removes, goes to a network.
    NEVER = (
        ("cache-dir", '"/tmp/c"'),
        ("run.out", '"/etc/cron.d/x"'),
        ("run.summary-json", '"x"'),
        ("run.forget-deleted", "true"),
        ("run.engine", '"ray"'),
        ("train.out", '"m"'),
        ("train.start", '"m"'),
        ("train.teacher", '"m"'),
        ("extract.out", '"d"'),
        ("export.onnx", '"x"'),
        ("search.open", "true"),
        ("sidecar.orphans", "true"),
        ("search.library", '"/home/x/tags.jsonl"'),
        ("sidecar.remove", "true"),
        ("sidecar.create-nfo", "true"),
        ("sidecar.out", '"d"'),
        ("sidecar.base", '"/"'),
    )

    @pytest.mark.parametrize(("key", "value"), NEVER)
    def test_may_not_set(self, key: str, value: str, tmp_path: Path) -> None:
        command, _, name = key.rpartition(".")
        text = f"[{command}]\n{name} = {value}" if command else f"{name} = {value}"
        folder_file(text)
        with pytest.raises(ConfigError, match=r"vtag\.toml:\d: the file of a folder may not set"):
            parsed(*RUN)
        Path("vtag.toml").unlink()
        user_file(tmp_path, text)
        parsed(*RUN)  # the owner of the machine may

    def test_what_it_may_set_are_no_places_to_write(self) -> None:
        # Flags whose value is a place, by what the help calls it.
        places = ("FILE", "DIR", "FOLDER", "MODEL", "CSV", "TAGS.jsonl")
        for flags in schema_of(build_parser()).commands.values():
            for key, flag in flags.items():
                parts = str(flag.action.metavar or "").split("|")
                if key in FOLDER_KEYS and key != "model":
                    assert not set(parts) & set(places), key

    @pytest.mark.parametrize("model", ["../mine", "/models/mine", ".", "sub/../../mine"])
    def test_may_not_name_a_model_elsewhere(self, model: str) -> None:
        folder_file(f'model = "{model}"')
        with pytest.raises(ConfigError, match="a model in this folder only"):
            parsed(*RUN)

    def test_may_not_name_a_model_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        Path("mine").symlink_to(tmp_path / "elsewhere")
        folder_file('model = "mine"')
        with pytest.raises(ConfigError, match="a model in this folder only"):
            parsed(*RUN)

    def test_may_name_a_model_of_its_own(self) -> None:
        folder_file('model = "my_model"')
        assert parsed(*RUN).model == "my_model"

    def test_folders_above_are_not_searched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder_file("top-k = 3")
        Path("below").mkdir()
        monkeypatch.chdir("below")
        assert parsed(*RUN).top_k == 20


def test_help_and_doctor_work_whatever_is_in_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_file("device = = 1")
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    assert main(["config", "path"]) == 0
    assert "vtag.toml\tread" in capsys.readouterr().out
    assert parsed("doctor").cache is None


def test_a_variable_with_a_slip_is_told() -> None:
    schema = schema_of(build_parser())
    lines = list(odd_variables(schema, {"VTAG_DEVCE": "x", "VTAG_WORKERS": "2", "VTAG_XYZ": ""}))
    assert lines == [
        "VTAG_DEVCE is no setting and does nothing; did you mean VTAG_DEVICE?",
        "VTAG_WORKERS is no setting and does nothing; did you mean VTAG_RUN_WORKERS?",
    ]


class TestShow:
    def test_each_value_with_its_origin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        user = user_file(tmp_path, 'decoder = "pyav"')
        folder_file("\n[run]\nworkers = 3\n")
        monkeypatch.setenv("VTAG_DEVICE", "cpu")
        assert main(["config", "show", "run", "--json", "--top-k", "4", "--no-cache"]) == 0
        rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
        told = {
            key: (rows[key]["value"], rows[key]["place"])
            for key in ("decoder", "workers", "device", "top-k", "no-cache", "max-frames", "out")
        }
        assert told == {
            "decoder": ("pyav", f"{user}:1"),
            "workers": (3, "vtag.toml:3"),
            "device": ("cpu", "VTAG_DEVICE"),
            "top-k": (4, "--top-k"),
            "no-cache": (True, "--no-cache"),
            "max-frames": (300, "default"),
            "out": (None, "default"),
        }
        assert len(rows) == len(
            {flag.dest for flag in schema_of(build_parser()).commands["run"].values()}
        )

    def test_without_a_command_what_is_shared_and_what_is_set(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder_file("top-k = 2\n[run]\nworkers = 3\n")
        assert main(["config"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["top-k", "2", "vtag.toml:1"] in rows
        assert ["run.workers", "3", "vtag.toml:3"] in rows
        assert ["device", '"auto"', "default"] in rows

    def test_a_hostile_value_can_not_drive_the_terminal(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder_file('device = "\\u001b[2J"')
        assert main(["config"]) == 0
        assert "\x1b" not in capsys.readouterr().out

    def test_no_such_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "show", "rnu"]) == 2
        assert "rnu" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [False, True])
def test_a_first_file_sets_nothing_and_every_line_of_it_works(
    folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = vars(parsed(*RUN))
    words = ["config", "init", *(["--folder"] if folder else [])]
    assert main(words) == 0
    path = Path("vtag.toml") if folder else tmp_path / "xdg" / "vtag" / "vtag.toml"
    text = path.read_text()
    assert {**vars(parsed(*RUN)), "command": 0} == {**before, "command": 0}
    assert main(words) == 2  # never over another one
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == text
    # With the # taken away it is a file of settings: all keys are known and of their type.
    path.write_text("\n".join(line.removeprefix("# ") for line in text.split("\n")[2:]))
    Settings(schema_of(build_parser()), {})
    keys = [line[2:].split(" ")[0] for line in text.split("\n")[2:] if line.startswith("# ")]
    assert len(keys) > 20
    assert not folder or set(keys) <= FOLDER_KEYS


def test_no_shared_setting_is_named_like_a_command() -> None:
    # In TOML a key and a table of one name exclude each other.
    schema = schema_of(build_parser())
    assert not set(schema.shared) & set(schema.commands)


def test_every_flag_of_every_command_can_be_set() -> None:
    schema = schema_of(build_parser())
    for name, parser in parsers_of(build_parser()).items():
        if name in schema.commands:
            dests = {a.dest for a in parser._actions if a.option_strings} - {"help"}
            assert {flag.dest for flag in schema.commands[name].values()} == dests
    assert "[run]" in template(schema, folder=False)


def test_a_default_is_a_value_that_can_be_set() -> None:
    # What the parser does with a text, and what a file does with a value, is the same.
    for flags in schema_of(build_parser()).commands.values():
        for flag in flags.values():
            default = flag.action.default
            if isinstance(default, str | int | float) and not flag.is_switch:
                assert typed_value(flag, default) == default
                assert typed_value(flag, str(default), is_text=True) == default


# -- words that make no sense --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rnu", "x"], "no command 'rnu'; did you mean run?"),
        (["here.mp4"], "is a file; to tag it: vtag tag here.mp4"),
        (["."], "is a folder; to tag it: vtag run . --out tags.jsonl"),
        (["zzz"], "commands: run, tag"),
        (["run"], "--out; for example: vtag run ./videos --out tags.jsonl"),
        (["run", "v", "--out", "t", "--worker", "3"], "no flag --worker; did you mean --workers"),
        (["run", "v", "--out", "t", "--workers", "x"], "--workers is a whole number, got 'x'"),
        (["tag", "a", "--sampling", "x"], "--sampling can not be 'x'; choose from uniform, keyf"),
        (["tag", "a", "--threshold", "\x1b"], r"--threshold is a number, got '\x1b'"),
        (["models", "lst"], "can not be 'lst'; did you mean list?"),
        (["labels", "dog"], "nothing to do with 'dog'"),
        (["tag", "--clip.mp4"], "a file of that name is given after --, or as ./--clip.mp4"),
    ],
)
def test_wrong_words_are_one_line_that_says_what_to_do(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("here.mp4").write_bytes(b"x")
    Path("--clip.mp4").write_bytes(b"x")
    with pytest.raises(SystemExit) as end:
        main([*words, *([] if words != ["tag", "--clip.mp4"] else ["other"])])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_without_a_command_the_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    err = capsys.readouterr().err
    assert "vtag run ./videos --out tags.jsonl" in err
    assert "doctor" in err


# -- completion ------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_without_torch(shell: str) -> None:
    code = (
        "import sys; from vtag.cli import main; status = main(sys.argv[1:]); "
        "print([n for n in ('torch', 'av', 'decord') if n in sys.modules], file=sys.stderr); "
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "completion", shell]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert made.stderr.strip() == "[]"
    for word in ("sidecar", "keyframes", *model_names()):
        assert word in made.stdout
    from shutil import which

    if which(shell):
        check = [shell, "-n"] if shell != "fish" else [shell, "--no-execute"]
        checked = subprocess.run(check, input=made.stdout, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["vtag", "sid"], {"sidecar"}),
        (["vtag", "run", "--watch-s"], {"--watch-settle"}),
        (["vtag", "tag", "--sampling", "k"], {"keyframes"}),
        (["vtag", "labels", "--model", "vtag-b"], {"vtag-base"}),
        (["vtag", "labels", "--model", "sub"], {"subfolder"}),
    ],
)
def test_what_bash_completes(line: list[str], expected: set[str]) -> None:
    Path("subfolder").mkdir()
    made = subprocess.run(
        [sys.executable, "-m", "vtag", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    words = " ".join(f"'{word}'" for word in line)
    script = (
        f"{made}\nCOMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; "
        'f=$(complete -p vtag | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); '
        f"$f vtag '{line[-1]}' '{line[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert {word.strip() for word in found.stdout.split()} == expected
