"""Every configuration composes, and shows its plan without touching anything."""

import dataclasses
import typing

import pytest

from tests.helpers.finished_sets import write_finished_set
from xelm_nemo import command, export, status
from xelm_nemo.config import values
from xelm_nemo.config.check import check
from xelm_nemo.config.compose import compose, from_yaml, to_yaml
from xelm_nemo.config.schema import RunConfig, differing_keys
from xelm_nemo.errors import ConfigError
from xelm_nemo.files import config_folder
from xelm_nemo.stages import pipeline, plan
from xelm_nemo.stages.jobs import round_jobs, seed_job
from xelm_nemo.stages.run import Run

EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))
CHOICES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in config_folder().glob("*/*.yaml")
    if path.parent.name != "experiment"
)
OUT_OF_RANGE = [
    *((key, least - 1, f"at least {least}") for key, least in values.AT_LEAST.items()),
    *((key, 0, "above 0") for key in values.ABOVE_ZERO),
    *((key, 1.5, "above 0 and at most 1") for key in values.UP_TO_ONE),
    *((key, 1, "at least 0 and below 1") for key in values.BELOW_ONE),
    *((key, -1, "from 0 to 4294967295") for key in values.SEEDS),
]


def with_value(config, key, value):
    """The configuration with another value of a key such as "optim.lr"."""
    first, _, rest = key.partition(".")
    inner = with_value(getattr(config, first), rest, value) if rest else value
    return dataclasses.replace(config, **{first: inner})


def numeric_keys(schema, prefix=""):
    """The settings of a dataclass, and of those inside it, that hold one number."""
    for name, kind in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from numeric_keys(kind, f"{prefix}{name}.")
        elif {int, float} & {kind, *(typing.get_args(kind) if typing.get_origin(kind) is not list else ())}:
            yield prefix + name


@pytest.fixture(scope="session")
def finished_set(tmp_path_factory):
    """Experiments that add to a set find it here."""
    folder = tmp_path_factory.mktemp("runs") / "xelm16"
    write_finished_set(folder)
    return folder


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_shows_its_plan_and_touches_nothing(
    experiment, tmp_path, monkeypatch, capsys, finished_set
):
    monkeypatch.chdir(tmp_path)
    there = [f"rounds.base={finished_set}"] if compose([f"+experiment={experiment}"]).rounds.base else []
    words = [f"+experiment={experiment}", *there, "dry_run=true"]
    code = command.run(lambda: pipeline.main("train", words))
    assert code == 0
    screen = capsys.readouterr().out
    config = compose([f"+experiment={experiment}"])
    experts = range(config.clustering.num_clusters) if config.training.train_clusters is None else []
    names = [f"expert{cluster}" for cluster in experts]
    names += ["dense"] if config.dense.enabled else []
    names += ["upcycled"] if config.upcycle.enabled else []
    assert names
    for name in names:
        assert f"{name} " in screen
    assert "…" not in screen, "eighty columns hold the table of models"
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
    promised = {"udhr", "xelm16", "xelm8", "xelm4", "dense", "cbtm8", "upcycle", "hmr_adapt"}
    assert promised <= set(EXPERIMENTS)


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


def test_words_of_a_random_model_make_another_run_and_those_of_an_imported_one_do_not():
    """Run folders from before the setting have null."""
    for choice, differing in (("random", ["seed_model.vocab_size"]), ("hf seed_model.path=x", [])):
        words = f"model=xglm_564m corpus=udhr seed_model={choice}".split()
        mine, before = compose(words), compose([*words, "seed_model.vocab_size=null"])
        assert differing_keys(mine, before) == differing


def test_a_key_that_must_be_given_is_named():
    from xelm_nemo.config.schema import ExportConfig

    with pytest.raises(ConfigError, match="output and source must be set"):
        compose([], ExportConfig, "export")


@pytest.mark.parametrize("key, value, wanted", OUT_OF_RANGE)
def test_number_out_of_its_range_is_refused_by_name(key, value, wanted):
    config = with_value(RunConfig(), key, value)
    with pytest.raises(ConfigError) as caught:
        check(config)
    assert f"{key}={value} must be {wanted}" in str(caught.value)


def test_every_number_has_a_range():
    assert set(numeric_keys(RunConfig)) == {key for key, *_ in OUT_OF_RANGE}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rate_that_is_no_finite_number_is_refused(value):
    with pytest.raises(ConfigError, match=r"optim\.lr=(nan|inf) must be above 0"):
        check(with_value(RunConfig(), "optim.lr", value))


@pytest.mark.parametrize(
    "setting, said",
    [
        ("model.hidden_size=66", "model.num_attention_heads=4 does not divide model.hidden_size=66"),
        ("model.hidden_size=65", "model.hidden_size=65 must be even"),
        ("tokenizer.kind=wordpiece", "use one of ['unigram', 'bpe']"),
        ("clustering.ngram_range=[3,1]", "clustering.ngram_range=[3, 1]"),
        ("clustering.ngram_range=[1]", "use for example [1,3]"),
        ("clustering.fit_on=train", "clustering.fit_on='train' names no shards; use all"),
        ("clustering.fit_on=[all]", "clustering.fit_on=['all'] names no shards"),
        ("clustering.fit_on=[]", "clustering.fit_on=[] names no shards"),
        ("evaluation.top_k=[0]", "evaluation.top_k=[0] keeps no expert"),
        ("evaluation.rules=[vote]", "evaluation.rules=['vote'] must be some of"),
        ("evaluation.rules=[]", "evaluation.rules=[] must be some of"),
        ("training.train_clusters=[1,1]", "has a cluster twice"),
        (
            ["checkpoint.keep_best=true", "training.train_iters=200", "training.save_interval=150"],
            "training.save_interval=150 first meet at iteration 200, the last; use one number",
        ),
        ("corpus.test_split=exam", "use ['train', 'valid', 'test']"),
        ("seed_model.vocab_size=100", "seed_model.vocab_size=100 is less than tokenizer.vocab_size=4096"),
        ("seed_model.source=model", "seed_model.path is not set; give a finished model's folder"),
        ("parallel.expert_model_parallel_size=2", "a dense model has none; use 1, or upcycle.enabled=true"),
        ("upcycle.gate_init=ones", "upcycle.gate_init='ones' is not known; use one of ['normal', 'uniform']"),
        (
            ["upcycle.enabled=true", "parallel.expert_model_parallel_size=3"],
            "parallel.expert_model_parallel_size=3 does not divide upcycle.num_moe_experts=32; use one of",
        ),
        (
            ["upcycle.enabled=true", "parallel.expert_model_parallel_size=2"],
            "parallel.expert_model_parallel_size=2 does not divide the 1 ranks",
        ),
        (
            ["upcycle.enabled=true", "parallel=tp2_sp"],
            "parallel.tensor_model_parallel_size=2 does not divide moe_experts; set",
        ),
        (
            ["upcycle.enabled=true", "model.num_layers=3"],
            "upcycle.moe_layer_freq=2 does not divide model.num_layers=3; use one of [1, 3]",
        ),
        (
            ["upcycle.enabled=true", "upcycle.train_iters=7"],
            "upcycle.train_iters=7 does not give whole micro-batches",
        ),
        (
            ["upcycle.enabled=true", "precision=fp8_delayed"],
            "precision.fp8 is not for models with moe_experts; set precision=bf16",
        ),
    ],
)
def test_value_that_cannot_work_is_refused(setting, said):
    with pytest.raises(ConfigError) as caught:
        compose([setting] if isinstance(setting, str) else setting)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        (["precision=fp8_delayed", "precision.params_dtype=fp32"], "params_dtype=fp32 does not go with"),
        (
            ["precision=fp8_delayed", "precision.fp8.first_last_layers_bf16=true"],
            "use tensorwise or blockwise",
        ),
        (["precision.fp8.first_last_layers_bf16=true"], "precision.fp8.recipe=None"),
        (
            ["precision.fp8.param_gather=true"],
            "precision.fp8.recipe=None has none there; use delayed, tensor",
        ),
        (["precision=fp8_delayed", "model.ffn_hidden_size=72"], "ffn_hidden_size=72 is no multiple of 16"),
        (["precision=fp8_delayed", "precision.fp8.recipe=mxfp8"], "'blockwise']"),
        (
            ["precision.fp8.head=true", "training.seq_length=30", "training.micro_batch_size=1"],
            "=30 is no multiple",
        ),
    ],
)
def test_fp8_that_cannot_be_is_refused(settings, said):
    with pytest.raises(ConfigError) as caught:
        compose(settings)
    assert said in str(caught.value)


def test_fp8_is_told_where_it_is_not_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "+experiment=udhr",
        "precision=fp8_delayed",
        "model.hidden_size=64",
        "model.ffn_hidden_size=256",
    ]
    assert command.run(lambda: pipeline.main("train", [*arguments, "output=run"])) == 2
    assert "precision.fp8 needs a GPU of compute capability 8.9" in capsys.readouterr().err


@pytest.mark.parametrize("masked", [False, True])
def test_document_mask_reaches_every_model_of_a_run(masked):
    config = compose(["+experiment=udhr", f"training.document_mask={masked}", "seed_model.train_iters=1"])
    run = Run(config)
    assert {job.document_mask for job in [seed_job(run), *round_jobs(run)]} == {masked}
    assert (differing_keys(config, compose(["+experiment=udhr", "seed_model.train_iters=1"])) != []) is masked


def test_document_mask_that_the_machine_cannot_make_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(plan, "mask_problem", lambda deterministic: f"no masks, {deterministic=}")
    arguments = ["+experiment=udhr", f"output={tmp_path / 'run'}", "training.deterministic=true"]
    run = [*arguments, "training.document_mask=true"]
    assert command.run(lambda: pipeline.main("train", run)) == 2
    assert "error: no masks, deterministic=True." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert not (tmp_path / "run").exists()


def test_shards_to_fit_on_are_one_or_a_list():
    assert compose([]).clustering.fit_shards is None
    assert compose(["clustering.fit_on=train/00000"]).clustering.fit_shards == ["train/00000"]
    both = compose(["clustering.fit_on=[train/00000,train/00003]"])
    assert both.clustering.fit_shards == ["train/00000", "train/00003"]


def test_rules_that_route_by_text_need_a_clusterer_of_texts():
    compose(["evaluation.rules=[bayes]", "clustering=random"])
    with pytest.raises(ConfigError, match=r"\['clustering'\] route by text.*clustering\.method=tfidf"):
        compose(["evaluation.rules=[clustering]", "clustering=random"])


def test_feed_forward_layer_must_divide_among_ranks():
    with pytest.raises(ConfigError, match=r"does not divide model\.ffn_hidden_size=99"):
        compose(["model.ffn_hidden_size=99", "parallel.tensor_model_parallel_size=2"])


@pytest.mark.parametrize(
    "setting", ["training.train_iters=0", "training.micro_batch_size=0", "parallel.data_parallel_size=0"]
)
def test_dry_run_refuses_what_a_run_refuses(setting, capsys):
    arguments = ["dense.enabled=true", setting, "dry_run=true"]
    assert command.run(lambda: pipeline.main("train", arguments)) == 2
    assert f"{setting} must be at least 1" in capsys.readouterr().err


def test_dense_baseline_and_test_split_may_come_later_and_leave_the_experts_alone():
    before = compose(["+experiment=xelm4"])
    after = compose(["+experiment=xelm4", "dense.enabled=true", "corpus.test_split=exam"])
    assert differing_keys(before, after) == []
    dense, *experts = round_jobs(Run(after))
    assert dense.name == "dense"
    assert experts == round_jobs(Run(before))


@pytest.mark.parametrize("module, said", [(status, "output=DIR"), (export, "source=DIR output=DIR")])
def test_every_command_explains_itself(module, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [module.__name__, "--help"])
    assert command.run(module.main) == 0
    screen = capsys.readouterr().out
    assert f"python -m {module.__name__}" in screen and said in screen
