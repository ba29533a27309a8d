"""Every configuration composes, and shows its plan without touching anything."""

import pytest

from xelm_nemo import command
from xelm_nemo.config.compose import compose, config_folder, from_yaml, to_yaml
from xelm_nemo.config.schema import differing_keys
from xelm_nemo.errors import ConfigError
from xelm_nemo.stages import pipeline

EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in config_folder().glob("*/*.yaml")
    if path.parent.name != "experiment"
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_shows_its_plan_and_touches_nothing(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = command.run(lambda: pipeline.main("train", [f"+experiment={experiment}", "dry_run=true"]))
    assert code == 0
    screen = capsys.readouterr().out
    config = compose([f"+experiment={experiment}"])
    for cluster in range(config.clustering.num_clusters):
        assert f"expert{cluster} " in screen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes(choice):
    compose([choice])


def test_help_lists_the_groups_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.run(lambda: pipeline.main("train", ["--help"])) == 0
    screen = capsys.readouterr().out
    assert "usage: python -m xelm_nemo.train" in screen
    assert "+experiment" in screen and "xelm16" in screen and "tfidf_char" in screen
    assert list(tmp_path.iterdir()) == []


def test_the_promised_experiments_exist():
    assert {"udhr", "xelm16", "xelm8", "xelm4", "dense", "cbtm8"} <= set(EXPERIMENTS)


def test_groups_on_the_command_line_win_over_the_experiment():
    config = compose(["+experiment=xelm16", "corpus=udhr", "seed_model=random", "model=tiny"])
    assert (config.corpus.builtin, config.seed_model.source, config.model.hidden_size) == (
        "udhr",
        "random",
        64,
    )
    assert config.clustering.num_clusters == 16


def test_xelm16_has_the_published_settings():
    config = compose(["+experiment=xelm16"])
    assert config.training.global_batch_size * config.seq_length == 524_288
    assert (config.training.train_iters, config.optim.lr, config.optim.min_lr) == (20_000, 1e-4, 0.0)
    assert (config.model.num_layers, config.model.hidden_size, config.model.num_attention_heads) == (
        24,
        2048,
        16,
    )


def test_cbtm8_has_the_published_settings():
    config = compose(["+experiment=cbtm8"])
    clustering, model, optim = config.clustering, config.model, config.optim
    assert (clustering.method, clustering.analyzer, clustering.num_clusters) == ("tfidf", "word", 8)
    assert (clustering.max_features, clustering.svd_dim, clustering.balanced) == (None, 100, True)
    assert (model.architecture, model.num_layers, model.hidden_size, model.num_attention_heads) == (
        *("opt", 24, 2048, 32),
    )
    assert (model.hidden_dropout, model.attention_dropout) == (0.1, 0.1)
    assert (config.training.train_iters, config.expert_batch_size, config.seq_length) == (10_000, 32, 2048)
    assert (optim.lr, optim.min_lr, optim.lr_warmup_iters, optim.clip_grad) == (2e-4, 0.0, 0, 1.0)
    assert config.seed_model.path == "facebook/opt-1.3b"


def test_groups_on_the_command_line_win_over_cbtm8():
    config = compose(["+experiment=cbtm8", "corpus=udhr", "seed_model=random", "model=tiny"])
    assert (config.corpus.path, config.corpus.builtin) == (None, "udhr")
    assert (config.seed_model.path, config.model.architecture) == (None, "xglm")


def test_configuration_survives_its_file(tmp_path):
    config = compose(["+experiment=udhr", "training.train_clusters=[1,3]"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_yaml(tmp_path / "config.yaml") == config


def test_only_keys_that_change_what_is_learned_make_another_run():
    config = compose(["+experiment=udhr"])
    other = compose(
        ["+experiment=udhr", "optim.lr=1", "launch.max_parallel=1", "evaluation.top_k=[3]", "output=x"]
    )
    assert differing_keys(config, other) == ["optim.lr"]


def test_a_key_that_must_be_given_is_named():
    from xelm_nemo.config.schema import ExportConfig

    with pytest.raises(ConfigError, match="output and source must be set"):
        compose([], ExportConfig, "export")
