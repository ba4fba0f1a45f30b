from __future__ import annotations

import os
from pathlib import Path

from interleaf.engine.step_record import HEADER, StepRecorder, read_step_record


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
