from xelm_nemo.log import Metrics, read_metrics


def test_resumed_run_repeats_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, resume_at=0)
    for iteration in range(1, 5):
        first.write({"iteration": iteration, "loss": 1.0})
    second = Metrics(path, resume_at=2)
    second.write({"iteration": 3, "loss": 0.5})
    assert [(line["iteration"], line["loss"]) for line in read_metrics(path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 0.5),
    ]


def test_line_that_a_kill_tore_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "loss": 1.0}\n{"iteration": 2, "lo')
    assert read_metrics(path) == [{"iteration": 1, "loss": 1.0}]
    Metrics(path, resume_at=1).write({"iteration": 2, "loss": 0.5})
    assert [line["iteration"] for line in read_metrics(path)] == [1, 2]


def test_run_without_metrics_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
