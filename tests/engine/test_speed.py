"""How fast a machine is: figures that can be, in a moment."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from cag_daemon.engine import speed
from cag_daemon.errors import ModelFailed


def test_a_machine_is_measured_in_a_moment() -> None:
    start = time.process_time()
    measured = speed.measure("cpu", threads=1)
    assert time.process_time() - start < 4  # of one thread; about one second where nothing else runs
    assert measured.device == "cpu"
    assert measured.name
    assert measured.dtype == "bfloat16"
    assert measured.memory is None
    assert 1e8 < measured.flops < 1e16
    assert 1e8 < measured.bandwidth < 1e14


def test_a_device_that_is_not_here_is_said_to_be_missing() -> None:
    with pytest.raises(ModelFailed, match="no device cuda:99"):
        speed.measure("cuda:99", seconds=0.01)
    assert speed.measure("auto", seconds=0.01).flops > 0


def test_the_fastest_of_several_runs_counts() -> None:
    naps = iter([0.2, 0.05, 0.01, 0.05, 0.05, 0.05])
    took = speed._fastest(lambda: time.sleep(next(naps)), torch.device("cpu"), 0.29)
    assert 0.01 <= took < 0.05


def test_what_takes_too_long_is_done_once() -> None:
    runs: list[int] = []
    took = speed._fastest(lambda: (runs.append(1), time.sleep(0.05)), torch.device("cpu"), 0.01)
    assert len(runs) == 1
    assert took >= 0.05


def test_figures_agree_with_a_stopwatch() -> None:
    """Within a factor of four: other work goes on here."""
    square = torch.ones(1024, 1024)
    work = partial(torch.nn.functional.linear, square, square)
    work()
    start = time.perf_counter()
    for _ in range(3):
        work()
    by_hand = 3 * 2 * 1024**3 / (time.perf_counter() - start)
    measured = speed._matrix_rate(torch.device("cpu"), torch.float32, 0.2)
    assert by_hand / 4 < measured < by_hand * 4
