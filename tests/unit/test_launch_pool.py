"""Tasks over processes; the functions below are imported by them."""

import os
import time
from pathlib import Path

import pytest

from xelm_nemo.errors import CorpusError, LaunchError
from xelm_nemo.launch.pool import num_processes, results, undone


def double(number):
    return {"twice": 2 * number, "threads": os.environ.get("OMP_NUM_THREADS")}


def slow_first(number):
    time.sleep(0.3 if number == 0 else 0)
    return number


def fail_on_odd(number):
    if number % 2:
        time.sleep(0.2 if number == 1 else 0)
        raise CorpusError(f"{number} is odd")
    return number


def count_calls(folder):
    with (Path(folder) / "calls").open("a") as file:
        file.write("x")
    return None


def die(_):
    os._exit(9)


def tasks(*numbers):
    return {f"folder/{number}": number for number in numbers}


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_tasks(tmp_path, processes):
    assert list(results(slow_first, tasks(0, 1, 2, 3), tmp_path, processes=processes)) == [0, 1, 2, 3]


def test_processes_use_one_thread_each(tmp_path):
    found = list(results(double, tasks(1, 2), tmp_path, processes=2))
    assert found == [{"twice": 2, "threads": "1"}, {"twice": 4, "threads": "1"}]


def test_done_tasks_are_not_done_again(tmp_path):
    work = tmp_path / "done"
    for _ in range(2):
        list(results(count_calls, {"a": str(tmp_path)}, work, processes=1))
    assert (tmp_path / "calls").read_text() == "x"
    assert undone({"a": 0, "b": 0}, work) == ["b"]


@pytest.mark.parametrize("processes", [1, 2])
def test_first_failure_in_order_is_raised_and_what_is_done_stays_done(tmp_path, processes):
    with pytest.raises(CorpusError, match="1 is odd"):
        results(fail_on_odd, tasks(0, 1, 3), tmp_path, processes=processes)
    assert "folder/0" not in undone(tasks(0, 1, 3), tmp_path)


def test_killed_process_is_one_line(tmp_path):
    with pytest.raises(LaunchError, match=r"was killed, .* set launch\.max_parallel lower"):
        results(die, tasks(0, 1), tmp_path, processes=2)


def test_little_work_is_not_worth_a_process():
    assert num_processes(1000, 64) == 1
    assert num_processes(10 << 30, 64) == 64
