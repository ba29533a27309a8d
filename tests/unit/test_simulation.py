"""The simulated cluster against what can be worked out by hand, and the file that it reads."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from xelm_nemo import command
from xelm_nemo import simulate as simulate_command
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.simulation.cluster import Jobs, Outcome, simulate
from xelm_nemo.simulation.compare import compare
from xelm_nemo.simulation.rates import Rates, read_rates

HOUR = 3600.0


def rates(**values):
    return Rates(tokens_per_second=1.0, **values)


def makespans(jobs, known, gpus, runs=4000):
    return np.array([simulate(jobs, known, gpus=gpus, seed=seed).makespan for seed in range(runs)])


def assert_mean(found, expected):
    """Within four standard errors, which are small."""
    error = found.std() / len(found) ** 0.5
    assert error < 0.03 * expected
    assert abs(found.mean() - expected) < 4 * error


# --- Closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus, waves", [(4, 4), (16, 1), (15, 2), (64, 1), (7, 3)])
def test_undisturbed_jobs_take_as_many_turns_as_there_are_places_for(gpus, waves):
    jobs = Jobs(number=16, gpus=1, work=100.0) if gpus != 7 else Jobs(number=9, gpus=2, work=100.0)
    assert simulate(jobs, rates(), gpus=gpus, seed=0) == Outcome(100.0 * waves)


def test_every_start_takes_its_time():
    assert simulate(Jobs(4, 1, 100.0), rates(start_seconds=7), gpus=2, seed=0).makespan == 214


def test_mean_of_a_single_wait():
    found = makespans(Jobs(1, 8, 600.0), rates(queue_minutes={1: 0, 64: 20}), gpus=8)
    assert_mean(found, 600 + 60 * 10)  # 8 is half-way from 1 to 64


def test_last_of_many_waits_is_the_harmonic_number_of_them():
    """The largest of K exponential waits has the mean 1 + 1/2 + ... + 1/K times theirs."""
    found = makespans(Jobs(16, 1, 600.0), rates(queue_minutes={1: 10}), gpus=16)
    assert_mean(found, 600 + 600 * sum(1 / k for k in range(1, 17)))


def test_failures_without_checkpoints():
    """Work and start R + W over and over, until it lasts: (exp(rate (R + W)) - 1) / rate."""
    known = rates(failures_per_gpu_hour=0.25, start_seconds=100)
    jobs, rate = Jobs(1, 8, HOUR), 8 * 0.25 / HOUR
    assert_mean(makespans(jobs, known, gpus=8, runs=20_000), math.expm1(rate * (HOUR + 100)) / rate)


def test_failures_between_checkpoints():
    """Each piece between two checkpoints is done over and over until it lasts, by itself."""
    jobs, rate = Jobs(1, 4, HOUR, save_every=HOUR / 10), 4 * 1.0 / HOUR
    expected = 10 * math.expm1(rate * HOUR / 10) / rate
    assert_mean(makespans(jobs, rates(failures_per_gpu_hour=1.0), gpus=4), expected)


def test_preemptions_lose_nothing_but_the_wait():
    known = rates(preemptions_per_job_hour=3, queue_minutes={1: 10}, requeue_seconds=120)
    assert_mean(makespans(Jobs(1, 64, 2 * HOUR), known, gpus=64), 2 * HOUR + 600 + 6 * (600 + 120))


def test_interruptions_are_as_many_as_their_rates_say():
    known = rates(preemptions_per_job_hour=1, failures_per_gpu_hour=0.5)
    found = [simulate(Jobs(8, 2, 10 * HOUR, 60.0), known, gpus=16, seed=seed) for seed in range(100)]
    hours = 8 * 10 * 100
    assert sum(each.preemptions for each in found) == pytest.approx(hours, rel=0.05)
    assert sum(each.failures for each in found) == pytest.approx(hours, rel=0.05)


def test_one_long_job_suffers_more_than_many_short_ones_from_the_same_failures():
    """What the simulation is for: the same GPUs, work and rates, one job or sixteen."""
    known = rates(failures_per_gpu_hour=0.01, requeue_seconds=600)
    dense = makespans(Jobs(1, 64, 20 * HOUR, HOUR), known, gpus=64, runs=100)
    experts = makespans(Jobs(16, 4, 20 * HOUR, HOUR), known, gpus=64, runs=100)
    assert experts.mean() < 0.9 * dense.mean()


# --- The course of events ---------------------------------------------------------------------------

ROUGH = rates(
    preemptions_per_job_hour=0.3,
    failures_per_gpu_hour=0.1,
    queue_minutes={1: 5},
    start_seconds=30,
    requeue_seconds=60,
)


def test_same_seed_has_the_same_course_and_another_has_another():
    jobs = Jobs(16, 2, 5 * HOUR, 600.0)
    first = simulate(jobs, ROUGH, gpus=8, seed=3)
    assert simulate(jobs, ROUGH, gpus=8, seed=3) == first != simulate(jobs, ROUGH, gpus=8, seed=4)


def test_more_gpus_never_make_it_longer_in_the_mean():
    jobs = Jobs(16, 2, 5 * HOUR, 600.0)
    means = [makespans(jobs, ROUGH, gpus, runs=50).mean() for gpus in (2, 4, 8, 16, 32)]
    assert means == sorted(means, reverse=True)
    assert makespans(jobs, ROUGH, 64, runs=50).mean() == means[-1]


def test_work_that_a_preemption_saved_is_not_lost_to_a_later_failure():
    known = rates(preemptions_per_job_hour=20, failures_per_gpu_hour=2)  # never saved otherwise
    assert makespans(Jobs(1, 1, HOUR), known, gpus=1, runs=500).mean() < 1.3 * HOUR


# --- The file ---------------------------------------------------------------------------------------


def write(tmp_path, **values):
    (tmp_path / "rates.json").write_text(json.dumps(values))
    return tmp_path / "rates.json"


def test_rates_are_read_and_interpolated_over_the_logarithm(tmp_path):
    path = write(
        tmp_path, note="mine", tokens_per_second=100, efficiency={"16": 0.6, "1": 1.0}, start_seconds=3
    )
    known = read_rates(path)
    assert known.tokens_a_second(1) == 100 and known.tokens_a_second(4) == pytest.approx(4 * 80)
    assert known.tokens_a_second(64) == pytest.approx(64 * 60)  # beyond the last as there
    assert known.queue_seconds(5) == 0 and known.start_seconds == 3


@pytest.mark.parametrize(
    "values, said",
    [
        ({}, "has no tokens_per_second"),
        ({"tokens_per_second": 0}, "tokens_per_second has to be above 0"),
        ({"tokens_per_second": 1, "queue": 3}, r"has \['queue'\], which are no rates; use some of"),
        ({"tokens_per_second": 1, "start_seconds": -1}, "start_seconds=-1 must be a number, 0 or more"),
        ({"tokens_per_second": "fast"}, "tokens_per_second='fast' must be a number"),
        ({"tokens_per_second": 1, "efficiency": 0.9}, "efficiency=0.9 must be numbers by number of GPUs"),
        ({"tokens_per_second": 1, "efficiency": {"1": 1.2}}, "efficiency above 0 and at most 1"),
        ({"tokens_per_second": 1, "queue_minutes": {"0": 1}}, "has a value for 0 GPUs"),
        ({"tokens_per_second": 1, "queue_minutes": {"many": 1}}, "must be numbers by number of GPUs"),
    ],
)
def test_rates_that_cannot_be_are_refused(tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        read_rates(write(tmp_path, **values))


def test_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"rates\.json"):
        read_rates(tmp_path / "rates.json")


# --- Experts against a dense model ------------------------------------------------------------------

XELM = ["+experiment=xelm16", "training.train_iters=1000", "training.micro_batch_size=4"]
PLAIN = Rates(tokens_per_second=40_000.0)


def compared(known, *gpus, words=(), courses=20):
    return compare(compose([*XELM, *words]), known, gpus, courses=courses, seed=1)


def test_undisturbed_experts_and_dense_model_take_the_same_time_for_the_same_tokens():
    for found in compared(PLAIN, 16, 32, 64):
        hours = 1000 * 256 * 2048 / (40_000 * found.gpus) / 3600
        assert found.experts.hours.mean == pytest.approx(hours) == pytest.approx(found.dense.hours.mean)
        assert found.experts.undisturbed == pytest.approx(hours)
        assert (found.experts.gpus, found.dense.gpus) == (found.gpus // 16, found.gpus)


def test_experts_take_turns_where_there_are_fewer_gpus_than_experts():
    four, six = compared(PLAIN, 4, 6)
    assert (four.experts.jobs, four.experts.gpus) == (16, 1)
    assert four.experts.hours.mean == pytest.approx(four.dense.hours.mean)
    assert six.dense.gpus == 4  # 64 micro-batches do not divide among six
    assert six.experts.hours.mean == pytest.approx(four.experts.hours.mean * 3 / 4)  # three turns of six


def test_no_model_has_more_ranks_than_micro_batches():
    (found,) = compared(PLAIN, 4096)
    assert (found.experts.gpus, found.dense.gpus) == (4, 64)


def test_model_parallel_ranks_stay_together():
    (found,) = compared(PLAIN, 64, words=["parallel=tp2_pp2_sp"])
    assert (found.experts.gpus, found.dense.gpus) == (4, 64)
    with pytest.raises(ConfigError, match=r"gpus=3 is less than the 4 GPUs that parallel\.\* gives one"):
        compared(PLAIN, 3, words=["parallel=tp2_pp2_sp"])


def test_what_is_lost_to_communication_is_lost_by_the_larger_job():
    known = Rates(tokens_per_second=40_000.0, efficiency={1: 1.0, 16: 0.8})
    (found,) = compared(known, 16)
    assert found.dense.hours.mean == pytest.approx(found.experts.hours.mean / 0.8)


def test_rounds_are_not_simulated():
    with pytest.raises(ConfigError, match=r"rounds\.kind='hmr' is not simulated"):
        compared(PLAIN, 16, words=["rounds=hmr"])


@pytest.mark.parametrize("word", ["upcycle.enabled=true", "parallel.expert_model_parallel_size=2"])
def test_sparse_models_are_not_simulated(word):
    with pytest.raises(ConfigError, match="of sparse models, which are not simulated; leave them out"):
        compared(PLAIN, 16, words=["upcycle.num_moe_experts=4", "upcycle.enabled=true", word])


# --- The command ------------------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parents[2] / "docs/rates.json"


def simulated(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["simulate", *map(str, words)])
    code = command.run(simulate_command.main)
    return code, capsys.readouterr()


def test_command_says_the_same_twice_and_draws(monkeypatch, capsys, tmp_path):
    words = [*XELM, f"rates={SHIPPED}", "gpus=16,64", "courses=5", f"plot={tmp_path / 'hours.png'}"]
    code, screen = simulated(monkeypatch, capsys, *words)
    assert code == 0 and "dense / experts" in screen.out
    assert (tmp_path / "hours.png").read_bytes().startswith(b"\x89PNG")
    assert simulated(monkeypatch, capsys, *words)[1].out == screen.out
    code, screen = simulated(monkeypatch, capsys, *words, "json=true", "seed=2")
    assert [row["gpus"] for row in json.loads(screen.out)] == [16, 64]


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "rates and gpus must be set, such as rates=docs/rates.json gpus=16,64,256"),
        (["rates=none.json", "gpus=16"], "none.json"),
        (["rates=x", "gpus=many"], "gpus='many' must be a whole number, 1 or more"),
        (["rates=x", "gpus=16", "courses=0"], "courses='0' must be a whole number, 1 or more"),
        (["rates", "gpus=16"], "'rates' has no value; write rates=VALUE"),
        (["rates=x", "gpus=16", "plot="], "plot='' cannot be written"),
        (["rates=x", "gpus=16", "plot=/none/x.png"], "plot='/none/x.png' cannot be written; give a file"),
        (["rates=x", "gpus=16", f"plot={__file__}/x.png"], "cannot be written"),
        (
            ["rates=x", "gpus=16", "plot=hours.txt"],
            "plot='hours.txt' cannot be written; give a file named .png",
        ),
        (["rates=x", "gpus=16", "plot=/"], "plot='/' cannot be written"),
        (["rates=x", "gpus=16", "json=yes"], "json='yes' is not known; use json=true"),
        (["rates=x", "gpus=16", "wrong=1"], "wrong is not a setting"),
    ],
)
def test_command_that_cannot_be_is_refused_in_one_line(monkeypatch, capsys, words, said):
    code, screen = simulated(monkeypatch, capsys, "+experiment=xelm16", *words)
    assert code == 2 and said in screen.err and screen.err.count("\n") == 1
