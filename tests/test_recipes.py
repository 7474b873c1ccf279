"""The recipes for clusters: their syntax, and that vtag understands every command in them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtag.cli import build_parser
from vtag.manifest import Manifest, write_manifest
from vtag.shards import Shard
from vtag.sources import Source

RECIPES = Path(__file__).parent.parent / "recipes"
SCRIPTS = ["slurm_array.sh", "slurm_merge.sh", "gnu_parallel.sh"]

# Writes its arguments where the test looks, and "fails" as a shard with broken videos does.
STUB = """#!/bin/sh
python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >> "$CALLS"
exit "${VTAG_STATUS:-0}"
"""


def parsed(words: list[str]) -> Any:
    """What the real parser makes of the words after `vtag`; it ends the test if it refuses."""
    return build_parser().parse_args(words)


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vtag` and `srun` only say how they were called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("vtag", STUB), ("srun", '#!/bin/sh\nexec "$@"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
    }


def calls(stubs: dict[str, str]) -> list[Any]:
    return [parsed(json.loads(line)) for line in Path(stubs["CALLS"]).read_text().splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", RECIPES / name], check=True)
    assert os.access(RECIPES / name, os.X_OK)


@pytest.mark.parametrize("name", [*SCRIPTS, "kubernetes_job.yaml"])
def test_commands_in_comments_are_understood(name: str) -> None:
    text = (RECIPES / name).read_text()
    found = re.findall(r"^#   (vtag .+?)(?:  +#.*)?$", text, re.MULTILINE)
    for command in found:
        parsed(shlex.split(command)[1:])
    assert found or "sbatch" in text or "recipes/" in text


def test_a_slurm_task_tags_its_shard(stubs: dict[str, str], tmp_path: Path) -> None:
    task = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "256", "SLURM_CPUS_PER_TASK": "4"}
    arguments = [RECIPES / "slurm_array.sh", "my plan.csv", "s3://bucket/tags"]
    for status, expected in (("0", 0), ("1", 0), ("3", 3), ("143", 143)):
        environment = {**stubs, **task, "VTAG_STATUS": status}
        assert subprocess.run(arguments, env=environment).returncode == expected
    args = calls(stubs)[0]
    assert (args.manifest, args.shard, args.out) == ("my plan.csv", "7/256", "s3://bucket/tags")
    assert args.workers == 4
    assert Shard.parse(args.shard) == Shard(7, 256)
    outside = subprocess.run(arguments, env=stubs, capture_output=True, text=True)
    assert outside.returncode != 0
    assert "sbatch --array" in outside.stderr


def test_the_slurm_merge(stubs: dict[str, str]) -> None:
    subprocess.run(
        [RECIPES / "slurm_merge.sh", "p.csv", "s3://b/t", "o.jsonl"], env=stubs, check=True
    )
    (args,) = calls(stubs)
    assert (args.outputs, args.plan, args.out) == (["s3://b/t"], "p.csv", "o.jsonl")


# What the recipe needs of GNU parallel: the quoted command once per word behind ":::".
PARALLEL = """#!/usr/bin/env bash
while [ "$1" != ::: ]; do last=$1; shift; done
for word in "${@:2}"; do bash -c "${last//\\{\\}/$word}" || exit 1; done
"""


def test_gnu_parallel_covers_every_shard(stubs: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("parallel") is None:
        (tmp_path / "bin" / "parallel").write_text(PARALLEL)
        (tmp_path / "bin" / "parallel").chmod(0o755)
    (tmp_path / "my videos").mkdir()
    environment = {**stubs, "SHARDS": "5", "VTAG_STATUS": "1"}
    command = [RECIPES / "gnu_parallel.sh", tmp_path / "my videos", tmp_path / "tags.jsonl"]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    *shards, merge = calls(stubs)
    assert sorted(args.shard for args in shards) == [f"{n}/5" for n in range(1, 6)]
    assert {tuple(args.inputs) for args in shards} == {(str(tmp_path / "my videos"),)}
    assert len({args.out for args in shards}) == 5
    assert merge.out == str(tmp_path / "tags.jsonl")


def test_the_kubernetes_job_covers_every_shard(stubs: dict[str, str]) -> None:
    (job,) = yaml.safe_load_all((RECIPES / "kubernetes_job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never"  # what a policy for failed pods demands
    last = spec["completions"] - 1
    for index in (0, 1, last):
        environment = {**stubs, "JOB_COMPLETION_INDEX": str(index), "VTAG_STATUS": "1"}
        script = [*container["command"], *container["args"]]
        subprocess.run(script, env=environment, check=True)
    found = calls(stubs)
    assert [args.shard for args in found] == [f"{n}/{last + 1}" for n in (1, 2, last + 1)]
    # The spool fits into its volume, and the volume into what the pod asked for.
    size = int(pod["volumes"][0]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    asked = int(container["resources"]["requests"]["ephemeral-storage"].removesuffix("Gi"))
    assert int(found[0].spool_size.removesuffix("G")) * 1e9 < size * 2**30 < asked * 2**30
    assert found[0].spool == container["volumeMounts"][0]["mountPath"]
    failed = subprocess.run(
        [*container["command"], *container["args"]],
        env={**stubs, "JOB_COMPLETION_INDEX": "0", "VTAG_STATUS": "3"},
    )
    assert failed.returncode == 3


def test_shards_by_the_recipes_are_a_division_of_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    write_manifest(path, [Source(f"s3://b/{n}.mp4", size=n * 1000) for n in range(200)])
    found = [s.path for i in range(1, 65) for s in Manifest(str(path)).sources(Shard(i, 64))]
    assert sorted(found) == sorted(f"s3://b/{n}.mp4" for n in range(200))
