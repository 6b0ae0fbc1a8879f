"""Several processes share a study, and killed ones lose at most the run they were in."""

import random
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.kills import kill_seed
from tests.study import workers
from tests.study.test_studying import measured


@pytest.mark.e2e
def test_two_processes_share_a_study_and_make_no_run_twice(whole_study: Path, prepared: Path, tmp_path: Path) -> None:
    both = [workers.start(prepared, tmp_path) for _ in range(2)]
    made = [workers.result_of(talk) for _, talk in both]
    for process, _ in both:
        process.join()
    assert all(made)
    assert not set(made[0]) & set(made[1])
    assert len(made[0]) + len(made[1]) == len(measured(whole_study))
    pd.testing.assert_frame_equal(measured(tmp_path), measured(whole_study))


@pytest.mark.kills
def test_a_study_that_is_killed_ten_times_has_the_same_results(
    whole_study: Path, prepared: Path, tmp_path: Path
) -> None:
    rng = random.Random(kill_seed())
    finished = 0
    for _ in range(10):
        process, talk = workers.start(prepared, tmp_path)
        for _ in range(rng.randint(1, 60)):
            if isinstance(talk.recv(), list):
                break
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        now = len(list((tmp_path / "runs").glob("*.json")))
        assert now >= finished, "a finished run was lost"
        finished = now
    process, talk = workers.start(prepared, tmp_path)
    workers.result_of(talk)
    process.join()
    pd.testing.assert_frame_equal(measured(tmp_path), measured(whole_study))
