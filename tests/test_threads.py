"""How many threads a run brings: as many as there are cores, whoever brings them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from media import draw_clip

from vtag import Sampling
from vtag.cores import usable_cores
from vtag.decode_process import DecoderProcess
from vtag.killable import bare_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")


class TestThreads:
    """vtag runs a child per core, so a child must not bring threads for every core."""

    def test_libraries_in_a_child_are_told_to_use_one(self) -> None:
        code = (
            "import os, numpy as np; x = np.ones((600, 600)); x @ x; "
            "print(len(os.listdir('/proc/self/task')))"
        )
        environment = {**bare_environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code]
        alone = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        assert alone.stdout.split() == [b"1"]

    # FFmpeg's scaler keeps a second thread that sleeps; decord reads and decodes in two of its
    # own, which wait for each other. With automatic counts there would be one more per core.
    @pytest.mark.parametrize(("decoder", "most"), [("pyav", 2), ("auto", 3)])
    def test_a_decode_child_stays_within_its_core(
        self, tmp_path: Path, decoder: str, most: int
    ) -> None:
        clip = draw_clip(tmp_path / "a.mp4", seconds=6, tone_hz=440.0)
        sampling = Sampling(decoder=decoder)  # type: ignore[arg-type]
        counts = set()
        with DecoderProcess() as child:
            for _ in child.decode(clip, sampling=sampling, want_video=True, want_sound=True):
                counts.add(len(os.listdir(f"/proc/{child.pid}/task")))
        assert 1 <= max(counts) <= most


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_network_threads_times_workers_are_the_cores(workers: int) -> None:
    code = (
        "import threading, torch; from vtag.cli_flags import share_cores; "
        f"share_cores({workers}); found = []; "
        "t = threading.Thread(target=lambda: found.append(torch.get_num_threads())); "
        "t.start(); t.join(); print(found[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    each = int(run.stdout)
    assert each == 1 or each * workers <= usable_cores() < (each + 1) * workers
