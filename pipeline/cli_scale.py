"""`vtag plan` and `vtag merge`, and what `vtag run` needs for inputs and outputs of any kind."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtag.cli_flags import check_summary_file, parse_size, write_summary
from vtag.cli_progress import say
from vtag.cli_status import OK, SOME_FAILED
from vtag.errors import ConfigError
from vtag.table import printable

if TYPE_CHECKING:
    from vtag.parts import PartResults
    from vtag.remote import RemoteSettings
    from vtag.remote_spool import Spool
    from vtag.results import ResultsWriter, StdoutResults
    from vtag.run import Summary
    from vtag.shards import Shard, ShardIdentity
    from vtag.sources import Source


SPOOL_SIZE = "10G"


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `vtag run` that say where inputs come from and lie meanwhile."""
    add = parser.add_argument_group("inputs and outputs in storage").add_argument
    add("--manifest", metavar="TABLE", help="further inputs: a .txt, .csv, .jsonl or .parquet")
    add(
        "--out-format",
        choices=["jsonl", "parquet"],
        default="jsonl",
        help="of the parts that an --out in storage gets",
    )
    add("--spool", metavar="DIR", help="a local disk for what is fetched (default: VTAG_SPOOL_DIR)")
    add("--spool-size", default=SPOOL_SIZE, metavar="10G", help="of all that is fetched at once")
    add("--max-object-size", metavar="10G", help="larger objects fail (default: the spool)")
    add_storage_flags(parser)


def add_storage_flags(parser: argparse.ArgumentParser) -> None:
    """How long a storage is waited for."""
    add = parser.add_argument
    add("--storage-timeout", type=float, default=30.0, metavar="S", help="without a single byte")
    add("--storage-attempts", type=int, default=6, metavar="N", help="before an object has failed")


def storage_settings(args: argparse.Namespace) -> RemoteSettings:
    """How long a storage is waited for, by the flags."""
    from vtag.remote import RemoteSettings
    from vtag.remote_errors import Patience

    try:
        return RemoteSettings(
            timeout_seconds=args.storage_timeout,
            patience=Patience(attempts=args.storage_attempts),
        )
    except ValueError as err:
        raise ConfigError(f"--storage-timeout and --storage-attempts are above 0: {err}") from err


def spool_maker(args: argparse.Namespace) -> Callable[[], Spool]:
    """Makes the spool that the flags ask for; nothing is made before it is called."""
    from vtag.remote_spool import Spool

    settings = storage_settings(args)
    size = parse_size(args.spool_size)
    limit = parse_size(args.max_object_size) if args.max_object_size else size
    if limit > size:
        raise ConfigError(
            f"--max-object-size {args.max_object_size} does not fit into --spool-size "
            f"{args.spool_size}"
        )
    if size == 0 or limit == 0:
        raise ConfigError("--spool-size and --max-object-size are above 0")
    folder = Path(args.spool) if args.spool else None
    return lambda: Spool(folder, max_bytes=size, max_object_bytes=limit, settings=settings)


def identity_of(args: argparse.Namespace, shard: Shard | None, model: str) -> ShardIdentity:
    """Which shard of what a run is."""
    from vtag.manifest import Manifest
    from vtag.shards import Shard, ShardIdentity, plan_of_names
    from vtag.uris import redact

    names = [redact(os.path.normpath(name) if "://" not in name else name) for name in args.inputs]
    plan = plan_of_names(names)
    if args.manifest:
        rows = Manifest(args.manifest, storage_settings(args)).plan().fingerprint
        plan = rows if not names else plan_of_names([*names, rows])
    return ShardIdentity(shard or Shard(1, 1), plan, model)


def open_results(
    args: argparse.Namespace, shard: Shard | None, model: str
) -> StdoutResults | ResultsWriter | PartResults:
    """The output of a run: standard output, a file, or a folder of parts for an address."""
    from vtag.parts import PartResults
    from vtag.results import ResultsWriter, StdoutResults
    from vtag.shard_mark import mark_path, write_mark

    if args.out == "-":
        return StdoutResults()
    if "://" in args.out:
        return PartResults(args.out, identity_of(args, shard, model), kind=args.out_format)
    out = Path(args.out)
    results = ResultsWriter(out, model_fingerprint=model)
    try:
        if shard is not None or args.manifest or mark_path(out).exists():
            write_mark(out, identity_of(args, shard, model), None)
    except BaseException:
        results.close()
        raise
    return results


def finish_results(
    args: argparse.Namespace,
    shard: Shard | None,
    model: str,
    results: StdoutResults | ResultsWriter | PartResults,
    summary: Summary,
    *,
    stopped: bool,
) -> None:
    """Marks the output as complete if every input of its shard was seen to its end."""
    from vtag.parts import PartResults
    from vtag.shard_mark import mark_path, write_mark

    cut = args.limit is not None and summary.inputs >= args.limit
    if stopped or summary.stopped or summary.unfinished or cut:
        return
    counts = {
        "inputs": summary.inputs,
        "tagged": summary.tagged,
        "failed": summary.failed,
        "skipped": summary.skipped,
    }
    if isinstance(results, PartResults):
        results.complete(counts)
    elif args.out != "-" and mark_path(Path(args.out)).exists():
        write_mark(Path(args.out), identity_of(args, shard, model), counts)


# -- vtag plan ----------------------------------------------------------------------------------


def add_scale_commands(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Adds `plan` and `merge`."""
    plan = command("plan", plan_command, "list inputs with their sizes, to divide them evenly")
    plan.add_argument("inputs", nargs="*", metavar="FOLDER|FILE|URI")
    plan.add_argument("--manifest", metavar="TABLE", help="further inputs")
    plan.add_argument(
        "--out", required=True, metavar="TABLE", help="a .jsonl, .csv, .parquet or .txt"
    )
    plan.add_argument(
        "--probe", action="store_true", help="ask remote objects for their length too"
    )
    plan.add_argument("--no-probe", action="store_true", help="not even local files")
    plan.add_argument("--workers", type=int, default=16, help="probes at once (default: 16)")
    plan.add_argument("--shards", type=int, metavar="N", help="say how even N shards would be")
    add_storage_flags(plan)

    merge = command("merge", merge_command, "make one file of results out of many")
    merge.add_argument("outputs", nargs="+", metavar="PART", help="files and folders of results")
    merge.add_argument("--out", required=True, metavar="TAGS.jsonl")
    merge.add_argument("--plan", metavar="TABLE", help="every row must have its record")
    merge.add_argument("--partial", action="store_true", help="take what is there")
    merge.add_argument("--summary-json", metavar="FILE", help="write the counts there")


def plan_command(args: argparse.Namespace) -> int:
    """`vtag plan`: a manifest with sizes and durations."""
    from vtag.discover import Discovery
    from vtag.manifest import Manifest, write_manifest
    from vtag.sources import find_sources
    from vtag.stream import in_order

    if args.workers < 1:
        raise ConfigError(f"--workers is above 0, got {args.workers}")
    discovery = Discovery()
    settings = storage_settings(args)

    lost: list[str] = []

    def look(source: Source) -> Source:
        if source.remote is None and not os.path.lexists(source.uri):
            lost.append(source.uri)
        return described(source, settings, remote=args.probe, local=not args.no_probe)

    found = find_sources(args.inputs, discovery, manifest=args.manifest)
    rows = write_manifest(Path(args.out), in_order(look, found, workers=args.workers))
    for warning in discovery.warnings:
        say(printable(warning))
    for path in lost:
        say(f"{printable(path)}: no such file; it is in the plan all the same")
    plan = Manifest(args.out).plan()
    sizes, seconds = plan.sizes, plan.durations
    ignored = f"; {discovery.ignored} other files ignored" if discovery.ignored else ""
    say(
        f"{rows} inputs, {sizes[sizes == sizes].sum() / 1e9:.1f} GB, "
        f"{seconds[seconds == seconds].sum() / 3600:.1f} h of video known{ignored} -> "
        f"{printable(args.out)}"
    )
    if args.shards:
        say(evenness(args.out, args.shards))
    return OK if rows and not lost else SOME_FAILED


def described(source: Source, settings: RemoteSettings, *, remote: bool, local: bool) -> Source:
    """The source with its size, and its duration where a few small reads tell it."""
    from vtag.remote import store_for
    from vtag.remote_errors import RemoteError
    from vtag.source_probe import duration_of

    if source.duration is not None:
        return source
    uri = source.remote
    if uri is None:
        try:
            status = os.stat(source.path)
            if not os.path.isfile(source.path):
                return source
            known = replace(source, size=status.st_size, modified=status.st_mtime)
            if not local:
                return known
            with open(source.path, "rb") as file:
                return replace(known, duration=duration_of(_reader(file), status.st_size))
        except OSError:
            return source  # its run will say what is wrong
    if not remote:
        return source
    store = store_for(uri, settings)
    try:
        stat = store.stat(uri)
        known = replace(source, size=stat.size, etag=stat.etag, modified=stat.modified)
        if stat.size is None:
            return known
        return replace(
            known,
            duration=duration_of(lambda start, end: store.read(uri, start, end, stat), stat.size),
        )
    except RemoteError:
        return source


def _reader(file: Any) -> Callable[[int, int], bytes]:
    def read(start: int, end: int) -> bytes:
        file.seek(start)
        data: bytes = file.read(end - start)
        return data

    return read


def evenness(manifest: str, count: int) -> str:
    """One line: by what the shards are divided, and how much more the largest has than the mean."""
    import numpy as np

    from vtag.manifest import Manifest
    from vtag.shards import Shard, weights_of

    Shard(1, count)
    plan = Manifest(manifest).plan()
    weights = weights_of(plan.sizes, plan.durations)
    shards = plan.shards(count)
    if weights is None or shards is None:
        return f"{count} shards by name: nothing is known of the sizes"
    loads = np.bincount(shards, weights, minlength=count)
    by_time = len(plan.durations) and not np.isnan(plan.durations).any()
    over = float(loads.max() / loads.mean() - 1) if len(weights) else 0.0
    return (
        f"{count} shards by {'duration' if by_time else 'size'}: the largest has "
        f"{100 * over:.1f} % more than the mean"
    )


# -- vtag merge ---------------------------------------------------------------------------------


def merge_command(args: argparse.Namespace) -> int:
    """`vtag merge`: one record per input, or a refusal."""
    from dataclasses import asdict

    from vtag.manifest import Manifest
    from vtag.merge import merge

    if "://" in args.out:
        raise ConfigError(f"{printable(args.out)}: name a local file, and copy it from there")
    if args.out.lower().endswith(".parquet"):
        raise ConfigError(
            f"{printable(args.out)}: what is merged is JSON lines; then make a table of it: "
            "vtag sidecar tags.jsonl --format parquet"
        )
    check_summary_file(args)
    outputs = [name for given in args.outputs for name in _expanded(given)]
    manifest = Manifest(args.plan) if args.plan else None
    merged = merge(outputs, Path(args.out), manifest=manifest, partial=args.partial)
    for complaint in merged.missing:
        say(printable(complaint))
    write_summary(args, asdict(merged))
    shards = f" of {merged.shards} shards" if merged.shards else ""
    say(
        f"{merged.records} records{shards} ({merged.ok} ok, {merged.failed} failed; "
        f"{merged.replaced} replaced by newer ones) -> {printable(args.out)}"
    )
    return SOME_FAILED if merged.failed or merged.missing else OK


def _expanded(name: str) -> Iterator[str]:
    import glob

    if "://" not in name and not os.path.lexists(name) and any(mark in name for mark in "*?["):
        yield from sorted(glob.glob(name)) or [name]
    else:
        yield name
