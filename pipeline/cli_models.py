"""`vtag labels` and `vtag models`: what can be told, and by what."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from difflib import get_close_matches

from vtag.cli_flags import needed
from vtag.cli_progress import say
from vtag.cli_status import OK, SOME_FAILED
from vtag.table import model_text, printable


def add_model_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds both; `command` is given a name, what runs it, and its help."""
    labels = command("labels", labels_command, "list the tags that the model can give")
    labels.add_argument("--search", metavar="TEXT", help="only those with TEXT in their name")
    labels.add_argument("--json", action="store_true")
    labels.add_argument("--model", default="vtag-base", metavar="NAME|FOLDER")

    models = command("models", models_command, "list, describe or download models")
    models.add_argument("action", nargs="?", choices=["list", "info", "download"], default="list")
    models.add_argument("name", nargs="?", metavar="NAME|FOLDER")
    models.add_argument("--json", action="store_true", help="for info: as JSON, with the network")


def labels_command(args: argparse.Namespace) -> int:
    """`vtag labels`: every tag that the model can give."""
    from vtag.head import load_head

    labels = load_head(args.model).labels
    found = labels.search(args.search) if args.search else list(labels)
    if args.json:
        print(json.dumps([label.to_dict() for label in found], ensure_ascii=False))
        return OK
    for label in found:
        above = " > ".join(labels.categories(label))
        row = (label.id, label.name, f"{label.threshold:.2f}", above)
        print("\t".join(map(printable, row)).rstrip())
    if not found:
        near = get_close_matches(args.search or "", [label.name for label in labels], n=3)
        advice = f"; did you mean {', '.join(near)}?" if near else "; `vtag labels` lists all"
        say(printable(f"{args.model} has no label with {args.search!r} in its name{advice}"))
        return SOME_FAILED
    return OK


def models_command(args: argparse.Namespace) -> int:
    """`vtag models list|info|download`."""
    from vtag.head import embedded_models, load_head
    from vtag.weights import download_weights, installed, list_weights

    if args.action == "download":
        print(download_weights(needed(args.name, "models download NAME")))
    elif args.action == "info":
        head = load_head(needed(args.name, "models info NAME"))
        about = head.describe()
        print(json.dumps(about, indent=2) if args.json else model_text(about))
    else:
        for name in embedded_models():
            print(f"{name}\tmodel\tembedded")
        for weights in list_weights():
            state = "embedded" if weights.embedded else installed(weights.name) or "not downloaded"
            print(f"{weights.name}\tweights\t{state}\t{weights.about}")
    return OK
