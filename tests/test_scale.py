"""What the cluster engine decides itself, without a cluster; the real one: test_scale_cluster."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from scripted_tagger import PIPELINE, OpenScripted

from vtag import scale, scale_worker
from vtag.cli import build_parser, main
from vtag.cli_engine import WorkerTagger, engine_of
from vtag.errors import ConfigError, EnvironmentProblem
from vtag.records import Failure, Record
from vtag.run import Summary, run
from vtag.scale import ClusterShare, RayEngine
from vtag.scale_worker import Attempts, Job, tag_rows, tagger_of
from vtag.sources import Source

RECIPES = Path(__file__).parent.parent / "recipes"


class Memory:
    """Results in a list; `known` are paths, or pairs of path and stamp."""

    def __init__(self, *known: object) -> None:
        self.known = set(known)
        self.records: list[Record] = []

    def done(self, path: str, content_id: str | None) -> bool:
        assert content_id is None  # the driver reads no inputs
        return path in self.known

    def done_as(self, path: str, stamp: str | None) -> bool:
        return (path, stamp) in self.known

    def failed(self, path: str) -> bool:
        return False

    def write(self, record: Record) -> None:
        self.records.append(record)


def ok(path: str) -> Record:
    return Record(path=path, status="ok", id="sha256:1")


class Tables:
    """In place of Ray Data: gives the rows that a test says for each wave."""

    def __init__(self, answer: Callable[[list[str]], list[Any]]) -> None:
        self.waves: list[list[str]] = []
        self._answer = answer

    def __call__(self, sources: list[Source], workers: int) -> Any:
        paths = [source.path for source in sources]
        self.waves.append(paths)
        rows = [row if isinstance(row, dict) else {"record": row, "problem": ""}
                for row in self._answer(paths)]  # fmt: skip
        return SimpleNamespace(iter_rows=lambda: iter(rows))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> RayEngine:
    pytest.importorskip("ray", reason="the extra [ray]")
    made = RayEngine.__new__(RayEngine)  # the real constructor talks to Ray
    made._pipeline, made._share = PIPELINE, ClusterShare(actors=1)
    monkeypatch.setattr(scale, "MIN_WAVE", 4)
    monkeypatch.setattr(scale, "WAVE_PER_WORKER", 4)
    return made


def go(engine: RayEngine, inputs: list[Any], results: Memory) -> Summary:
    summary = Summary()
    list(run(PIPELINE, inputs, results, summary, workers=1, engine=engine))
    return summary


class TestExactlyOnce:
    def test_inputs_go_out_in_waves_and_what_is_done_does_not(self, engine: RayEngine) -> None:
        engine._dataset = Tables(lambda paths: [ok(path) for path in paths])  # type: ignore[method-assign]
        inputs = [f"/{n}.mp4" for n in range(10)]
        results = Memory("/2.mp4", "/7.mp4")
        summary = go(engine, inputs, results)
        assert [len(wave) for wave in engine._dataset.waves] == [3, 3, 2]
        assert sorted(r.path for r in results.records) == sorted({*inputs} - results.known)  # type: ignore[type-var]
        assert (summary.inputs, summary.tagged, summary.skipped) == (10, 8, 2)

    def test_what_ray_gives_twice_or_unasked_is_taken_once_or_not(self, engine: RayEngine) -> None:
        engine._dataset = Tables(lambda paths: [ok(p) for p in [*paths, *paths, "/other"]])  # type: ignore[method-assign]
        results = Memory()
        assert go(engine, ["/a", "/b"], results).unfinished == 0
        assert [r.path for r in results.records] == ["/a", "/b"]

    def test_what_ray_drops_has_a_failed_record(self, engine: RayEngine) -> None:
        engine._dataset = Tables(lambda paths: [ok(p) for p in paths if p != "/b"])  # type: ignore[method-assign]
        results = Memory()
        assert go(engine, ["/a", "/b", "/c"], results).codes == {"worker_lost": 1}
        assert sorted(r.path for r in results.records) == ["/a", "/b", "/c"]

    def test_an_object_is_done_by_its_stamp_and_not_by_its_name(self, engine: RayEngine) -> None:
        engine._dataset = Tables(lambda paths: [ok(path) for path in paths])  # type: ignore[method-assign]
        old, new = (Source("s3://b/a.mp4", size=5, etag=etag) for etag in ("x", "y"))
        results = Memory("s3://b/a.mp4", ("s3://b/a.mp4", old.stamp))
        assert go(engine, [old], results).skipped == 1
        assert go(engine, [new], results).tagged == 1

    def test_a_worker_that_can_not_start_ends_the_run_in_words(self, engine: RayEngine) -> None:
        engine._dataset = Tables(lambda paths: [{"record": None, "problem": "no weights"}])  # type: ignore[method-assign]
        with pytest.raises(EnvironmentProblem, match="no weights"):
            go(engine, ["/a"], Memory())

    def test_a_stop_is_noticed_while_nothing_comes(self) -> None:
        never = threading.Event()

        def rows() -> Iterator[dict[str, Any]]:
            yield {"n": 1}
            never.wait(60)

        began = time.monotonic()
        found = list(scale._until(lambda: time.monotonic() - began > 0.5, rows()))
        never.set()
        assert found == [{"n": 1}]
        assert time.monotonic() - began < 5

    def test_an_error_of_the_rows_comes_out(self) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            yield {"n": 1}
            raise KeyError("lost")

        with pytest.raises(KeyError, match="lost"):
            list(scale._until(lambda: False, rows()))


def test_attempts_are_counted_until_one_ends() -> None:
    attempts = Attempts()
    assert [attempts.begin(b"a"), attempts.begin(b"a"), attempts.begin(b"b")] == [0, 1, 0]
    attempts.end(b"a")
    assert [attempts.begin(b"a"), attempts.begin(b"b")] == [0, 1]
    attempts.end(b"never begun")


class TestWorker:
    """`tag_rows` as Ray calls it, with the counter called in place."""

    @pytest.fixture
    def job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
        ray = pytest.importorskip("ray", reason="the extra [ray]")
        monkeypatch.setattr(ray, "get", lambda value: value)
        counter = Attempts()
        calls = SimpleNamespace(
            begin=SimpleNamespace(remote=counter.begin), end=SimpleNamespace(remote=counter.end)
        )
        (tmp_path / "notes").mkdir()
        tagger_of.cache_clear()
        yield Job(
            "t", OpenScripted(tmp_path / "notes"), PIPELINE.head.info.fingerprint, calls, None
        )
        tagger_of.cache_clear()

    def rows(self, *names: str) -> dict[str, Any]:
        found = [scale_worker.row_of(Source(name)) for name in names]
        return {key: [row[key] for row in found] for key in ("path", "source")}

    def test_names_come_back_as_they_were_given(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        odd = os.fsdecode(b"n\xffme.mp4")
        out = tag_rows(self.rows("./fine.mp4", odd, "bug.mp4"), job)
        assert [r.path for r in out["record"]] == ["./fine.mp4", odd, "bug.mp4"]
        assert [r.status for r in out["record"]] == ["ok", "ok", "failed"]
        assert out["record"][2].error.message.startswith("bug.mp4: RuntimeError: a bug of two")
        # The tagger itself was given a path that does not depend on its folder.
        assert out["record"][0].id == "sha256:fine.mp4"

    def test_a_name_in_a_message_is_the_users(self) -> None:
        error = Failure(code="corrupt", stage="video", message="/far/a.mp4: bad", retryable=False)
        record = Record(path="/far/a.mp4", status="failed", error=error)
        found = scale_worker.under_name(record, "a.mp4", "/far/a.mp4")
        assert (found.path, found.error and found.error.message) == ("a.mp4", "a.mp4: bad")

    def test_an_input_that_was_begun_three_times_is_given_up(self, job: Job) -> None:
        for _ in range(scale_worker.MAX_ATTEMPTS):
            job.attempts.begin.remote(b"fine.mp4")
        found = tag_rows(self.rows("fine.mp4"), job)["record"][0]
        assert (found.error.code, found.error.retryable) == ("worker_lost", True)
        assert tag_rows(self.rows("fine.mp4"), job)["record"][0].ok  # --retry-failed begins anew

    def test_another_model_is_refused(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray

        monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.9")
        other = Job("u", job.open_tagger, "another", job.attempts, None)
        found = tag_rows(self.rows("fine.mp4"), other)
        assert list(found["record"]) == [None]
        assert re.search(r"10\.0\.0\.9 .* and that of the driver another", found["problem"][0])


@pytest.mark.parametrize(
    "numbers", [{"gpus": -1}, {"actors": 0}, {"gpus": 1, "decoders": 0}, {"decoders": 2}]
)
def test_a_share_that_makes_no_sense_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"gpus|actors|decoders"):
        ClusterShare(**numbers)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus", "1"], "--gpus belongs to --engine ray"),
        (["--ray-address", "auto"], "--ray-address belongs to --engine ray"),
        (["--engine", "ray", "--workers", "2"], "say --actors"),
        (["--engine", "ray", "--out", "-"], "needs a file"),
        (["--engine", "ray", "--gpus", "1", "--precision", "int8"], "not in int8"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: list[str], words: str) -> None:
    args = build_parser().parse_args(["run", "x", "--out", "y.jsonl", *flags])
    with pytest.raises(ConfigError, match=words), engine_of(args, PIPELINE):
        pass


def test_a_cluster_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="the extra [ray]")
    with pytest.raises(EnvironmentProblem, match="can not be joined"), scale.joined_ray("nonsense"):
        pass


def test_what_workers_are_told_can_be_sent_and_names_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    flags = ["--model", "mine", "--cache", "c", "--top-k", "3"]
    args = build_parser().parse_args(["run", "x", "--out", "y.jsonl", *flags])
    sent = pickle.loads(pickle.dumps(WorkerTagger(args)))
    assert sent._flags["model"] == str(tmp_path / "mine")
    assert sent._flags["cache"] == str(tmp_path / "c")
    assert sent._flags["top_k"] == 3


def test_a_cache_in_object_storage_stays_an_address() -> None:
    flags = ["--out", "y.jsonl", "--cache", "s3://bucket/cache"]
    args = build_parser().parse_args(["run", "x", *flags])
    assert WorkerTagger(args)._flags["cache"] == "s3://bucket/cache"


class TestRecipes:
    # Fields of ray.io/v1 in ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go of KubeRay.
    JOB = {  # noqa: RUF012
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy",
        "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId",
        "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes",
        "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
        "ttlSecondsAfterFinished",
    }  # fmt: skip
    CLUSTER = {  # noqa: RUF012
        "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec", "headServiceAnnotations",
        "rayVersion", "suspend", "workerGroupSpecs",
    }  # fmt: skip
    GROUP = {"rayStartParams", "template"}  # noqa: RUF012
    WORKERS = GROUP | {"groupName", "maxReplicas", "minReplicas", "numOfHosts", "replicas"}

    def job(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((RECIPES / "kuberay.yaml").read_text())
        return found

    def test_the_job_has_only_fields_that_there_are(self) -> None:
        job = self.job()
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        cluster = job["spec"]["rayClusterSpec"]
        assert set(job["spec"]) <= self.JOB
        assert set(cluster) <= self.CLUSTER
        assert set(cluster["headGroupSpec"]) == self.GROUP
        for group in cluster["workerGroupSpecs"]:
            assert set(group) <= self.WORKERS
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    def test_pods_are_whole(self) -> None:
        cluster = self.job()["spec"]["rayClusterSpec"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            (container,) = pod["containers"]
            assert {v["name"] for v in container.get("volumeMounts", [])} == {
                v["name"] for v in pod.get("volumes", [])
            }
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert all(isinstance(v, str) for v in group["rayStartParams"].values())
            assert all(isinstance(v["value"], str) for v in container["env"])

    def test_its_command_is_one_and_asks_for_what_there_is(self) -> None:
        job = self.job()["spec"]
        program, *arguments = shlex.split(job["entrypoint"])
        args = build_parser().parse_args(arguments)
        assert (program, args.engine, args.failed_ok) == ("vtag", "ray", True)
        groups = job["rayClusterSpec"]["workerGroupSpecs"]

        def most(resource: str) -> int:
            return sum(
                group["maxReplicas"]
                * int(group["rayStartParams"].get(f"num-{resource}s") or
                      group["template"]["spec"]["containers"][0]["resources"]["limits"]
                      .get({"cpu": "cpu", "gpu": "nvidia.com/gpu"}[resource], 0))
                for group in groups
            )  # fmt: skip

        assert (args.gpus, args.decoders) == (most("gpu"), most("cpu"))

    def test_its_ray_is_one_that_vtag_takes(self) -> None:
        root = RECIPES.parent
        text = (root / "pyproject.toml").read_text()
        low, high = re.findall(r'"ray\[data\]>=(\d+\.\d+),<(\d+\.\d+)"', text)[0]
        version = self.job()["spec"]["rayClusterSpec"]["rayVersion"]
        assert _number(low) <= _number(version) < _number(high)

    def test_the_job_script_submits_the_command(self, tmp_path: Path) -> None:
        fake = tmp_path / "ray"
        fake.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
        fake.chmod(0o755)
        script = ["bash", str(RECIPES / "ray_job.sh")]
        inputs = ["s3://bucket/my videos", "s3://bucket/tags", "--gpus", "2"]
        env = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "RAY_ADDRESS": "http://head:8265",
            "VTAG_PACKAGE": "vtag[ray,s3]",
        }
        done = subprocess.run([*script, *inputs], env=env, capture_output=True, text=True)
        words = done.stdout.splitlines()
        assert words[:4] == ["job", "submit", "--address", "http://head:8265"]
        assert json.loads(words[words.index("--runtime-env-json") + 1]) == {"pip": ["vtag[ray,s3]"]}
        program, *arguments = words[words.index("--") + 1 :]
        args = build_parser().parse_args(arguments)
        assert (program, args.engine, args.inputs) == ("vtag", "ray", ["s3://bucket/my videos"])
        assert (args.out, args.gpus, args.failed_ok) == ("s3://bucket/tags", 2, True)
        missing = subprocess.run(script, env=env, capture_output=True, text=True)
        assert missing.returncode != 0
        assert "the videos" in missing.stderr

    def test_ray_knows_the_flags_of_the_job_script(self) -> None:
        pytest.importorskip("ray", reason="the extra [ray]")
        from ray.dashboard.modules.job.cli import submit

        known = {flag for parameter in submit.params for flag in parameter.opts}
        used = set(re.findall(r"^  (--[a-z-]+) ", (RECIPES / "ray_job.sh").read_text(), re.M))
        assert used == {"--address", "--runtime-env-json"} <= known


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def test_without_ray_it_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setenv("VTAG_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "tags.jsonl"
    assert main(["run", str(tmp_path), "--out", str(out), "--engine", "ray"]) == 3
    assert "pip install 'vtag[ray]'" in capsys.readouterr().err
