"""Who may import whom. The table is the architecture; a new arrow is added here on purpose."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"pipeline": "vtag", "extractors": "vtag.extractors", "models": "vtag.models"}

# group -> (its modules, the groups that it may import besides itself)
GROUPS: dict[str, tuple[str, str]] = {
    "errors": ("errors cores room", ""),
    "base": ("records config label_thresholds", "errors"),
    "store": (
        "storage content_id cache cache_entry cache_writer results record_lines stdout_results "
        "run_lock done_index shard_mark",
        "errors base shards",
    ),
    "uris": ("uris", "errors"),
    "shards": ("shards", "errors"),
    "remote": (
        "remote remote_errors remote_http remote_folder remote_cache parts part_parquet",
        "errors base store uris shards",
    ),
    "sources": (
        "sources manifest remote_glob remote_spool source_probe",
        "errors base store uris shards remote discover decode",
    ),
    "fetch": ("remote_tagger", "errors base store remote sources tagger"),
    "merge": ("merge merge_outputs", "errors store uris shards remote sources"),
    "weights": ("weights download", "errors store"),
    # What a file is, where its frames and sound are, without torch: this runs in the child.
    "decode": (
        "sniff signatures sync_words container mp4_boxes packet_table stream_choice decord_fit "
        "orientation h264_units probe plan picture "
        "decode decode_pyav decode_seek decode_walk decode_decord decode_report sound",
        "errors base",
    ),
    "torchcodec": ("decode_torchcodec", "errors base decode"),  # with torch; only when asked for
    "child": (
        "decode_answers decode_backends decode_child decode_limits decode_process decode_wire "
        "decode_worker killable sandbox",
        "errors base store decode torchcodec",
    ),
    # Can be lifted out and used alone: nothing of decoding, caching or tagging is known there.
    "extractors": ("extractors", "errors base weights"),
    "models": ("models", "errors base store"),
    "features": (
        "features feature_rows decoder_pool adaptive shared_batches",
        "errors base store decode child extractors",
    ),
    "stream": ("stream signals", ""),
    "head": ("head", "errors base extractors models"),
    "tagger": (
        "tagger",
        "errors base store extractors features head stream uris remote",
    ),
    "discover": ("discover", "errors base decode shards"),
    "devices": ("device_workers", "errors base child watch tagger"),
    "run": ("run input_groups", "errors base store stream tagger sources fetch"),
    "scale": (
        "scale scale_cluster scale_networks scale_worker",
        "errors base stream extractors tagger run sources",
    ),
    "watch": ("watch watch_events moved", "errors base store discover"),
    "settings": ("settings settings_files settings_schema", "errors store"),
    "score": ("score_model", "errors base models head learning data learning"),
    "export": ("export_onnx", "errors base store models head"),
    "table": ("table", "errors base"),
    "corrections": ("corrections", "errors base store models"),
    "report": (
        "report report_entries report_folder report_page report_thumbnails",
        "errors base store child models stream sidecar",
    ),
    "sidecar": (
        "sidecar sidecar_files sidecar_change sidecar_nfo sidecar_orphans "
        "sidecar_webvtt sidecar_xml sidecar_xmp sidecar_tables",
        "errors base store discover table",
    ),
    "search": (
        "search search_index search_match search_query search_scores search_tables search_tree "
        "similar",
        "errors base store table features",
    ),
    "learning data": (
        "youtube8m tf_example tfrecord dataset dataset_items dataset_split dataset_streams "
        "dataset_corrections batches",
        "errors base store decode discover models corrections",
    ),
    "learning": (
        "train train_start train_config train_run "
        "train_state train_processes train_result train_advice "
        "train_report train_curves evaluate kaggle",
        "errors base store models extractors learning data",
    ),
}
# The doors may see everything, and nobody sees them.
FREE = {"vtag", "vtag.__main__", "vtag.doctor"}
FREE |= {f"vtag.{file.stem}" for file in (ROOT / "pipeline").glob("cli*.py")}

FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py"))


def layer(module: str) -> str:
    """`vtag.models.netvlad` belongs to the layer `vtag.models`."""
    return ".".join(module.split(".")[:2])


def layer_of(file: Path) -> str:
    package = FOLDERS[file.parent.name]
    return layer(package if file.stem == "__init__" else f"{package}.{file.stem}")


GROUP_OF = {f"vtag.{name}": group for group, (names, _) in GROUPS.items() for name in names.split()}


def allowed(group: str) -> set[str]:
    words = GROUPS[group][1]
    return {group} | {other for other in GROUPS if re.search(rf"\b{other}\b", words)}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            if node.module == "vtag":
                names |= {f"vtag.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {layer(name) for name in names if name.split(".")[0] == "vtag"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_imports_follow_the_table(file: Path) -> None:
    if layer_of(file) in FREE:
        return
    group = GROUP_OF[layer_of(file)]
    extra = {
        name
        for name in imported(file) - {"vtag", "vtag.__version__"}
        if GROUP_OF.get(name) not in allowed(group)
    }
    assert not extra, f"{file.name} ({group}) must not import {sorted(extra)}"


def test_nobody_imports_the_doors() -> None:
    for file in FILES:
        if layer_of(file) not in FREE:
            assert not imported(file) & (FREE - {"vtag"})


def test_folders_are_flat() -> None:
    # The list of packages in pyproject.toml then never changes.
    for folder in FOLDERS:
        nested = [p for p in (ROOT / folder).rglob("*.py") if p.parent != ROOT / folder]
        assert nested == []
