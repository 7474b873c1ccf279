"""Small libraries of results for the tests of searching, and the slow way to search them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

NAMES = {
    "dog": ("n1", ["mammal", "animal"]),
    "hot dog": ("n2", ["food"]),
    "golden retriever": ("n3", ["dog", "mammal", "animal"]),
    "beach": ("n4", ["place"]),
    "Café": ("n5", ["place"]),
    "bark": ("/m/0b", ["animal sound"]),
}


def tag(name: str, score: float = 0.9, *spans: tuple[float, float], source: str = "visual") -> Any:
    """A tag of a record; `spans` are its segments."""
    id_, categories = NAMES.get(name, (f"x {name}", []))
    segments = [{"start": start, "end": end, "score": score} for start, end in spans]
    return {
        "id": id_,
        "name": name,
        "score": score,
        "threshold": 0.1,
        "categories": categories,
        "sources": source.split("+"),
        "segments": segments,
        "evidence": [],
    }


def record(path: str, *tags: Any, duration: float | None = 60.0, failed: bool = False) -> Any:
    """A record of schema 1."""
    error = {"code": "corrupt", "stage": "video", "message": f"{path}: no", "retryable": False}
    return {
        "schema": 1,
        "id": f"sha256:{path}",
        "path": path,
        "status": "failed" if failed else "ok",
        "media": None if duration is None else {"duration": duration},
        "tags": list(tags),
        "model": None,
        "timing": {},
        "warnings": [],
        **({"error": error} if failed else {}),
    }


def write(path: Path, *records: Any) -> Path:
    """The records as a file of results."""
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def append(path: Path, *records: Any) -> None:
    """More of them at its end."""
    with path.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in records)


def drawn_records(seed: int, count: int) -> list[Any]:
    """Records with times on whole seconds."""
    rng = random.Random(seed)
    records = []
    for number in range(count):
        tags = []
        for name in rng.sample(sorted(NAMES), rng.randint(0, 4)):
            edges = sorted(rng.sample(range(20), 2 * rng.randint(0, 3)))
            spans = [(float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
            source = rng.choice(["visual", "audio", "visual+audio"])
            tags.append(tag(name, rng.choice([0.2, 0.5, 0.8, 0.9, 0.95]), *spans, source=source))
        tags.sort(key=lambda each: -each["score"])
        path = f"{rng.choice(['beach', 'dog', 'a_dog-park', 'x'])}/{number}.mp4"
        failed = rng.random() < 0.15
        duration = rng.choice([None, 10.0, 25.0, 30.0])
        records.append(record(path, *([] if failed else tags), duration=duration, failed=failed))
    return records


# -- queries as nested tuples: drawn, written as text, and answered by looking at every record --


def drawn_query(rng: random.Random, depth: int = 3) -> tuple[Any, ...]:
    """("word", field, text) and so on, or ("and"|"or", [parts]) or ("not", part)."""
    if depth and rng.random() < 0.6:
        kind = rng.choice(["and", "and", "or", "not"])
        if kind == "not":
            return ("not", drawn_query(rng, depth - 1))
        return (kind, [drawn_query(rng, depth - 1) for _ in range(rng.randint(2, 3))])
    kind = rng.choice(["word"] * 4 + ["score", "source", "after", "before", "status", "duration"])
    if kind == "word":
        field = rng.choice(["", "", "tag", "category", "path"])
        text = rng.choice(
            ["dog", "DOG", "d*", "hot dog", "cafe", "beach", "animal", "retriev*", "n1"]
        )
        return (kind, field, text)
    if kind == "source":
        return (kind, rng.choice(["audio", "visual"]))
    if kind == "status":
        return (kind, rng.choice(["ok", "failed"]))
    sign = rng.choice([">", ">=", "<", "<="])
    if kind == "score":
        return (kind, sign, rng.choice([0.2, 0.5, 0.8, 0.9]))
    if kind == "duration":
        return (kind, sign, rng.choice([10.0, 25.0]))
    return (kind, float(rng.randint(0, 20)))


def as_text(query: tuple[Any, ...]) -> str:
    """The query as a person writes it."""
    kind = query[0]
    if kind in ("and", "or"):
        word = " AND " if kind == "and" else " OR "
        return word.join(f"({as_text(part)})" for part in query[1])
    if kind == "not":
        return f"NOT ({as_text(query[1])})"
    if kind == "word":
        _, field, text = query
        quoted = f'"{text}"' if " " in text else text
        return f"{field}:{quoted}" if field else quoted
    return f"{kind}:{''.join(map(str, query[1:]))}"


def slow_scores(query: tuple[Any, ...], records: list[Any]) -> dict[str, float]:
    """Path to score of each record that matches: docs/search.md, "What a query means"."""
    scores = {each["path"]: _slow(query, each, []) for each in records}
    return {path: score for path, score in scores.items() if score is not None}


def slow_together(query: tuple[Any, ...], records: list[Any]) -> set[str]:
    """Paths of the records in which the query holds at some moment: half seconds are tried."""
    moments = [at + 0.5 for at in range(100)]
    return {each["path"] for each in records if any(_at(query, each, [], time) for time in moments)}


def _end(each: Any) -> int:
    """Whole seconds; without a known one some more than any drawn time."""
    ends = [span["end"] for one in each["tags"] for span in one["segments"]]
    return int(max([*ends, each["media"]["duration"] if each["media"] else 25.0]))


def describes(query: tuple[Any, ...]) -> bool:
    """Whether it says something of tags only."""
    if query[0] in ("and", "or"):
        return all(describes(part) for part in query[1])
    if query[0] == "not":
        return describes(query[1])
    return query[0] in ("score", "source", "after", "before")


def _slow(query: tuple[Any, ...], each: Any, given: list[Any]) -> float | None:
    kind = query[0]
    if describes(query):
        return _best(None, each, [*given, query])
    if kind == "and":
        own, rest = _split(query, given)
        scores = [_slow(part, each, own) for part in rest]
        return None if None in scores else min(scores)
    if kind == "or":
        found = [s for s in (_slow(part, each, given) for part in query[1]) if s is not None]
        return max(found, default=None)
    if kind == "not":
        return 1.0 if _slow(query[1], each, given) is None else None
    if kind == "word":
        _, field, text = query
        in_path = _share(text, each["path"]) is not None
        if field == "path":
            return 1.0 if in_path else None
        best = _best((field, text), each, given)
        path_score = 0.5 if in_path and not field and not given else None
        return max((s for s in (best, path_score) if s is not None), default=None)
    return 1.0 if _filter(query, each) else None


def _at(query: tuple[Any, ...], each: Any, given: list[Any], time: float) -> bool:
    kind = query[0]
    if describes(query):
        return _any_tag(None, each, [*given, query], time)
    if kind == "and":
        own, rest = _split(query, given)
        return all(_at(part, each, own, time) for part in rest)
    if kind == "or":
        return any(_at(part, each, given, time) for part in query[1])
    if kind == "not":
        return not _at(query[1], each, given, time)
    if kind == "word":
        _, field, text = query
        in_path = _share(text, each["path"]) is not None
        if field == "path":
            return in_path
        return (in_path and not field and not given) or _any_tag((field, text), each, given, time)
    return _filter(query, each)


def _split(query: tuple[Any, ...], given: list[Any]) -> tuple[list[Any], list[Any]]:
    """What holds for the words of an AND, and its other parts."""
    own = [part for part in query[1] if describes(part)]
    rest = [part for part in query[1] if not describes(part)]
    if own and not any(_has_tags(part) for part in rest):
        return given, [*rest, ("and", own)]
    return given + own, rest


def _has_tags(query: tuple[Any, ...]) -> bool:
    if query[0] in ("and", "or"):
        return any(_has_tags(part) for part in query[1])
    if query[0] == "not":
        return _has_tags(query[1])
    return query[0] not in ("status", "duration") and query[:2] != ("word", "path")


def _best(word: tuple[str, str] | None, each: Any, given: list[Any]) -> float | None:
    scores = []
    for one in each["tags"]:
        weight = 1.0 if word is None else _weight(word, one)
        spans = one["segments"] or [None]
        if weight is not None and any(all(_is(c, one, s) for c in given) for s in spans):
            scores.append(one["score"] * weight)
    return max(scores, default=None)


def _any_tag(word: tuple[str, str] | None, each: Any, given: list[Any], time: float) -> bool:
    return any(
        span["start"] <= time < span["end"] and all(_is(c, one, span) for c in given)
        for one in each["tags"]
        if word is None or _weight(word, one) is not None
        for span in one["segments"]
    )


def _is(condition: tuple[Any, ...], one: Any, span: Any, wanted: bool = True) -> bool:
    kind = condition[0]
    if kind == "not":
        return _is(condition[1], one, span, not wanted)
    if kind in ("and", "or"):
        answers = [_is(part, one, span, wanted) for part in condition[1]]
        return all(answers) if (kind == "and") == wanted else any(answers)
    if kind == "source":
        return (condition[1] in one["sources"]) is wanted
    if kind == "score":
        return eval(f"{one['score']} {condition[1]} {condition[2]}") is wanted
    if span is None:
        return False
    holds = span["end"] > condition[1] if kind == "after" else span["start"] < condition[1]
    return holds is wanted


def _weight(word: tuple[str, str], one: Any) -> float | None:
    field, text = word
    texts = [one["name"], one["id"], *one["categories"]]
    if field == "tag":
        texts = texts[:2]
    elif field == "category":
        itself = [one["name"]] if len(_split_words(one["name"])) <= len(_split_words(text)) else []
        texts = [*one["categories"], *itself]
    return max((s for s in (_share(text, each) for each in texts) if s is not None), default=None)


def _share(text: str, whole: str) -> float | None:
    """Which share of the words of `whole` the text is; None if it is not in it."""
    wanted, words = _split_words(text), _split_words(whole)
    for at in range(len(words) - len(wanted) + 1):
        found = words[at : at + len(wanted)]
        last = found[-1].startswith(wanted[-1]) if text.endswith("*") else found[-1] == wanted[-1]
        if found[:-1] == wanted[:-1] and last:
            return min(1.0, len(wanted) / len(words))
    return None


def _split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("é", "e"))


def _filter(query: tuple[Any, ...], each: Any) -> bool:
    if query[0] == "status":
        return bool(each["status"] == query[1])
    duration = each["media"] and each["media"]["duration"]
    return duration is not None and eval(f"{duration} {query[1]} {query[2]}")
