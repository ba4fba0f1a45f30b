from __future__ import annotations

import os
from pathlib import Path

from interleaf.engine.step_record import HEADER, StepRecorder, read_stats, read_step_record
from interleaf.messages import SchedulerStats


def test_the_last_step_is_read_without_the_writer(tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path / "step", max_num_seqs=4)
    recorder.write(7, ["a-1", "a-2", "a-1.1"])
    recorder.write(8, ["a-2.3"])
    assert read_step_record(tmp_path / "step") == (8, {"a-2"})
    recorder.close()
    assert read_step_record(tmp_path / "step") == (8, {"a-2"})


def test_a_new_record_and_none_at_all_tell_nothing(tmp_path: Path) -> None:
    assert read_step_record(tmp_path / "step") == (-1, set())
    StepRecorder(tmp_path / "step", max_num_seqs=4).close()
    assert read_step_record(tmp_path / "step")[1] == set()
    (tmp_path / "step").write_bytes(b"\x00" * (HEADER.size - 1))
    assert read_step_record(tmp_path / "step") == (-1, set())


def test_names_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    recorder = StepRecorder(tmp_path / "step", max_num_seqs=1)
    recorder.write(1, [f"request-{number}" for number in range(100)])
    assert {"request-0", "request-1"} <= read_step_record(tmp_path / "step")[1]


def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    StepRecorder(tmp_path / "step", max_num_seqs=1).close()
    assert os.stat(tmp_path / "step").st_mode & 0o777 == 0o600


def test_counters_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "record"
    assert read_stats(path) is None
    recorder = StepRecorder(path, 4)
    assert read_stats(path) is None
    recorder.write(3, ["a.0", "b.1"])
    stats = SchedulerStats(*[2**40 + number for number in range(12)])
    recorder.write_stats(stats)
    recorder.write_stats(SchedulerStats(prefix_cache_hits=7))
    recorder.write(4, ["c.0"])
    assert read_stats(path) == SchedulerStats(prefix_cache_hits=7) and read_step_record(path) == (4, {"c"})
    path.write_bytes(path.read_bytes()[:20])
    assert read_stats(path) is None
