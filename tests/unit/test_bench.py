"""Every case runs, at a toy size, and says what the peers that are not here lack."""

import dataclasses
import json

import pytest
import torch

from xelm_nemo.bench import registry, run, timing
from xelm_nemo.errors import ConfigError

NO_ERROR, TOO_SMALL = 0, 7  # of NVML
SMALL = ["hidden=16", "vocab=256", "rounds=2"]


def rows_of(tmp_path, *words):
    request = registry.parse([*words, *SMALL, f"json={tmp_path / 'rows.jsonl'}"])
    run.run(request)
    return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]


def test_head_is_compared_with_megatron(tmp_path, capsys):
    only = ["megatron", "three_products", "ours", "ours_any_grad", "no_such_peer"]
    rows = rows_of(tmp_path, "linear_cross_entropy", "tokens=32,48", f"only={','.join(only)}")
    assert [(row["tokens"], row["provider"]) for row in rows] == [(n, p) for n in (32, 48) for p in only[:4]]
    for row in rows:
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        if row["provider"] == "three_products":
            assert row["share_of_floor"] == 1 and row["errors"] == {}
        else:
            assert set(row["errors"]) == {"loss", "hidden", "weight"}
            assert max(row["errors"].values()) < 1e-5
    table = capsys.readouterr().out
    assert "linear_cross_entropy tokens=48 hidden=16 vocab=256" in table and "ours_any_grad" in table


def test_peer_that_cannot_run_says_why_and_the_others_go_on(tmp_path, monkeypatch):
    case = registry.load("linear_cross_entropy")
    broken = registry.Provider("broken", lambda inputs: {}["peer"])
    with_broken = dataclasses.replace(case, providers=lambda sizes: [broken, *case.providers(sizes)])
    monkeypatch.setattr(run, "load", lambda name: with_broken)
    broken_row, ours = rows_of(tmp_path, "linear_cross_entropy", "tokens=32", "only=broken,ours")
    assert broken_row["failed"] == "KeyError: 'peer'" and "p50_ms" not in broken_row
    assert ours["speed_up"] == 1


def test_steps_that_differ_by_more_than_a_tenth_are_called_unsteady():
    steady, drifting = (
        [{"times_ms": [10.0, 10.5, 10.9]}],
        [{"times_ms": [10.0] * 3}, {"times_ms": [12.0] * 3}],
    )
    assert timing.summary(steady) == {"p20_ms": 10.2, "p50_ms": 10.5, "p80_ms": pytest.approx(10.74)}
    assert timing.summary(drifting) | {"notes": "unsteady"} == timing.summary(drifting)


def test_what_spoils_a_figure_is_noted():
    good = {"times_ms": [10.0] * 3, "requests": 0, "clock_mhz": 1980, "watts": 600.0, "processes": 1}
    spoilt = {"requests": 2, "clock_mhz": 990, "watts": 400.0, "processes": 2, "slowed_by": {"heat"}}
    turns = [good, good | spoilt]
    assert "notes" not in timing.summary(turns[:1])
    row = timing.summary(turns)
    assert row["notes"] == "GPU shared, asked for memory, heat"
    assert (row["clock_mhz"], row["watts"]) == (1485, 500)


def test_state_of_the_gpu_is_read_from_nvml(monkeypatch):
    def answer(value, status=NO_ERROR):
        def ask(*arguments):
            pointer = next(x for x in arguments if hasattr(x, "_obj"))
            pointer._obj.value = value
            return status

        return ask

    answers = {
        "ClockInfo": answer(1410),
        "PowerUsage": answer(698_500),
        "CurrentClocksThrottleReasons": answer(0x1 | 0x4 | 0x80),
        "ComputeRunningProcesses_v3": answer(2, TOO_SMALL),
    }
    monkeypatch.setattr(timing, "_nvml", lambda: answers)
    assert timing.gpu_state() == {
        "clock_mhz": 1410,
        "watts": 698.5,
        "slowed_by": {"power cap", "power brake"},
        "processes": 2,
    }
    monkeypatch.setattr(timing, "_nvml", lambda: None)
    assert timing.gpu_state() == {}


@pytest.mark.gpu
def test_steps_of_a_turn_find_their_memory_in_the_cache():
    turn = timing.take_turn(lambda: torch.ones(2**24, device="cuda").sum())
    assert turn["requests"] == 0 and min(turn["times_ms"]) > 0


def test_parts_of_the_head_run(tmp_path):
    rows = rows_of(tmp_path, "linear_cross_entropy_parts", "chunk=32")
    assert {"logits", "moments", "gradient", "hidden_grad"} <= {row["provider"] for row in rows}
    assert all("p50_ms" in row for row in rows)


@pytest.mark.parametrize(
    "words, complaint",
    [
        ([], "no case is named; name one or more of"),
        (["head"], r"case='head' is not one; use one of \['assign', 'batch_router', 'evaluate', 'featurise'"),
        (["linear_cross_entropy", "tokens=0"], "tokens='0': use whole numbers from 1 on"),
        (["linear_cross_entropy", "rounds=many"], "rounds='many': use whole numbers"),
        (["linear_cross_entropy", "rounds=2,3"], "rounds='2,3': use one number"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        registry.parse(words)


def test_size_that_no_case_has_is_refused():
    with pytest.raises(ConfigError, match=r"layers: no such size; use one of .*'tokens'"):
        run.run(registry.parse(["linear_cross_entropy", "layers=3"]))
