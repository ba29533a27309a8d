"""The benchmarks of the mixtures run, and what they compare computes the same."""

import pytest

from xelm_nemo.bench.mixture import measure_mixture, measure_target_mixture


@pytest.mark.parametrize("measure", [measure_mixture, measure_target_mixture])
def test_every_provider_is_timed_and_right(measure, device):
    found = measure(device)
    rows = {(tuple(row["shape_ETV"]), row["provider"]): row for row in found["rows"]}
    assert {"eager", "ours"} <= {provider for _, provider in rows}
    for row in rows.values():
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["max_error"] < 1e-4
    assert all(row["times_eager"] == 1.0 for (_, provider), row in rows.items() if provider == "eager")
