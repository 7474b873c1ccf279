"""What a file of results says of the shards in it: a small file beside it, for `vtag merge`.

`tags.jsonl` has `tags.jsonl.shard.json` when its run was told `--shard` or `--manifest`. Records
stay as they are: which division they came from is a fact of the run and not of a video.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtag.errors import OutputError
from vtag.shards import ShardIdentity
from vtag.storage import reason, write_whole


def mark_path(out: Path) -> Path:
    """Where the mark of a file of results lies."""
    return out.with_name(f"{out.name}.shard.json")


def read_mark(out: Path) -> list[dict[str, Any]]:
    """The shards in a file of results, as `{identity…, "complete", "counts"}`; none if unmarked.

    Raises:
        OutputError: the mark is damaged or can not be read.
    """
    path = mark_path(out)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        shards = list(fields["shards"].values())
        for shard in shards:
            ShardIdentity.from_dict(shard)
    except FileNotFoundError:
        return []
    except OSError as err:
        raise OutputError(f"{path}: can not be read ({reason(err)})") from err
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise OutputError(
            f"{path}: damaged ({err}); run its shard again after deleting it"
        ) from err
    return shards


def write_mark(out: Path, identity: ShardIdentity, counts: dict[str, Any] | None) -> None:
    """Says that a shard of this identity goes into `out`, complete with `counts` if they are given.

    Several shards of one division may follow each other into one file.

    Raises:
        OutputError: the file holds shards of another division, or the mark can not be written.
    """
    marks = {mark["index"]: mark for mark in read_mark(out)}
    for mark in marks.values():
        other = ShardIdentity.from_dict(mark)
        if (other.plan, other.shard.count) != (identity.plan, identity.shard.count):
            what = "other inputs" if other.plan != identity.plan else "another number of shards"
            raise OutputError(
                f"{out}: holds shard {other.shard} of {what}; choose another --out, or delete it "
                f"and {mark_path(out).name}"
            )
    mark = {**identity.to_dict(), "complete": counts is not None, "counts": counts}
    marks[identity.shard.index] = mark
    fields = {"vtag": 1, "shards": {str(index): marks[index] for index in sorted(marks)}}
    try:
        write_whole(mark_path(out), json.dumps(fields, indent=1).encode() + b"\n", mode=0o644)
    except OSError as err:
        raise OutputError(f"{mark_path(out)}: can not be written ({reason(err)})") from err
