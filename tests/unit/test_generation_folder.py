"""An exported set on disk: written, opened, and asked for text."""

import dataclasses
import math
import shutil

import pytest
import torch
import transformers

from tests.helpers.exported import TEXTS, evaluations_log_prob, export_two, fit, write
from tests.helpers.random_xglm import change_config
from xelm_nemo import command, generate
from xelm_nemo.clustering.clusterer import fit_clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.corpus.documents import Document
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.generation.model import XelmConfig, XelmForCausalLM
from xelm_nemo.generation.text import Sampling, Writer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_two(tmp_path_factory.mktemp("exported"))


def test_a_set_opens_as_one_model_that_gives_what_evaluation_measures(root):
    from transformers import AutoModelForCausalLM

    import xelm_nemo.generation.model  # noqa: F401  tells transformers of the model type

    model = AutoModelForCausalLM.from_pretrained(root / "set")
    ids = [2, *load_tokenizer(root / "tokenizer")(TEXTS[4], add_special_tokens=False)["input_ids"], 2]
    whole = model(torch.tensor([ids[:-1]])).logits[0].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(whole, evaluations_log_prob(root, ids), atol=1e-5, rtol=1e-5)
    cache, steps = None, []
    for token in ids[:-1]:
        out = model(torch.tensor([[token]]), past_key_values=cache)
        cache, steps = out.past_key_values, [*steps, out.logits[0, 0]]
    by_steps = torch.stack(steps).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(by_steps, whole, atol=1e-5, rtol=1e-5)


def test_a_set_may_be_moved_with_its_experts(root, tmp_path):
    shutil.copytree(root, tmp_path / "elsewhere")
    sampling = Sampling(max_new_tokens=4)
    (here,), (there,) = (
        Writer(path / "set", sampling).write(["human"]) for path in (root, tmp_path / "elsewhere")
    )
    assert here.text == there.text


def test_a_set_that_is_saved_holds_its_experts_and_opens_again(root, tmp_path):
    XelmForCausalLM.from_pretrained(root / "set").save_pretrained(tmp_path / "saved")
    sampling = Sampling(max_new_tokens=4)
    (ours,), (saved,) = (
        Writer(path, sampling).write(["human"]) for path in (root / "set", tmp_path / "saved")
    )
    assert ours.text == saved.text
    torch.testing.assert_close(ours.log_w_TE, saved.log_w_TE)


def test_prompts_in_a_batch_are_continued_as_each_alone(root):
    writer = Writer(root / "set", Sampling(max_new_tokens=6))
    prompts = ["human beings", "jeder hat ein recht", ""]
    together = writer.write(prompts)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = writer.write([prompt])
        assert (found.text, found.tokens) == (alone.text, alone.tokens)
        torch.testing.assert_close(found.log_w_TE, alone.log_w_TE)
        assert found.text.startswith(prompt) and len(found.tokens) == len(found.log_w_TE) <= 6


def test_the_same_seed_draws_the_same_text_and_another_another(root):
    def text(seed):
        return (
            Writer(root / "set", Sampling(max_new_tokens=20, temperature=1.0, seed=seed))
            .write(["viele"])[0]
            .text
        )

    assert text(1) == text(1) != text(2)


def test_fewer_experts_a_token_are_kept_on_request(root):
    (found,) = Writer(root / "set", Sampling(max_new_tokens=5, experts_per_token=1)).write(["human"])
    assert (found.log_w_TE.exp().sum(-1) == 1).all() and (found.log_w_TE == 0).any(-1).all()


def test_a_clusterer_that_cannot_place_texts_weighs_all_alike(root):
    fit(method="typology").save(root / "by_language")
    folder = write(root, "uniform", clusterer="by_language")
    (found,) = Writer(folder, Sampling(max_new_tokens=2)).write(["human"])
    torch.testing.assert_close(found.log_w_TE.exp(), torch.full((len(found.tokens), 2), 0.5))


def test_more_experts_than_clusters_are_refused(root):
    fit(num_clusters=3).save(root / "three")
    with pytest.raises(ConfigError, match="three has 3 clusters and the set 2 experts"):
        write(root, "mismatched", clusterer="three")


def test_experts_of_different_vocabularies_are_refused(root):
    shutil.copytree(root / "expert1", root / "expert2")
    change_config(root / "expert2", vocab_size=299)
    with pytest.raises(ConfigError, match=r"expert0 and .*expert2 differ in vocab_size"):
        write(root, "vocabularies", experts=("expert0", "expert2"))


@pytest.mark.parametrize("key, value", [("vocab_size", 299), ("d_model", 96), ("num_layers", 2)])
def test_a_set_whose_experts_have_become_different_is_not_opened(root, tmp_path, key, value):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    change_config(tmp_path / "expert1", **{key: value})
    with pytest.raises(ConfigError, match=f"expert0 and .*expert1 differ in {key}; give experts branched"):
        XelmForCausalLM.from_pretrained(tmp_path / "set")
    with pytest.raises(ConfigError, match=f"differ in {key}"):
        write(tmp_path, "again")


def test_a_clusterer_of_another_corpus_is_refused_where_the_set_is_opened(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    other = [Document(f"x|{n}", text, "xx") for n, text in enumerate(["cat dog", "sun moon", "dog", "moon"])]
    fit_clusterer(other, ClusteringConfig(num_clusters=2, svd_dim=3, num_starts=1)).save(
        tmp_path / "set/clusterer"
    )
    with pytest.raises(ConfigError, match="set/clusterer is not the clusterer that the set was written with"):
        XelmForCausalLM.from_pretrained(tmp_path / "set")


@pytest.mark.parametrize(
    "path, content, said",
    [
        ("set/config.json", b"{", "set/config.json is not JSON"),
        ("set/sentencepiece.bpe.model", None, "set holds no tokenizer"),
        ("set/clusterer/centroids.safetensors", b"x", "centroids.safetensors is damaged"),
        ("expert1/config.json", None, "expert1/config.json is missing"),
        ("expert1/model.safetensors", None, "expert1 holds no model that can be read .*; export it again"),
        ("expert1/model.safetensors", b"12345678", "expert1 holds no model that can be read .*header"),
    ],
)
def test_damage_to_a_set_is_said_in_a_line(root, tmp_path, path, content, said):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    if content is None:
        (tmp_path / path).unlink()
    else:
        (tmp_path / path).write_bytes(content)
    with pytest.raises(ArtifactError, match=said):
        Writer(tmp_path / "set", Sampling())


def test_a_folder_is_not_blamed_where_memory_is_short(root, monkeypatch):
    def load(folder, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Writer(root / "set", Sampling())


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [2.0, -1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_fixed_weights_that_cannot_work_are_refused(root, weights):
    config = XelmConfig.from_pretrained(root / "set")
    config.weights = weights
    with pytest.raises(ConfigError, match=r"weights=.* are not one for each of 2 experts; .* from 0 up"):
        XelmForCausalLM.from_pretrained(root / "set", config=config)


def test_fixed_weights_take_the_place_of_the_router(root):
    config = XelmConfig.from_pretrained(root / "set")
    config.weights = [3.0, 1.0]
    cache = XelmForCausalLM.from_pretrained(root / "set", config=config)(torch.tensor([[2, 9, 8]]))
    weights = cache.past_key_values.log_w_BSE.exp()
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]).expand(1, 3, 2))


def test_a_set_without_one_of_its_experts_says_so(root, tmp_path):
    shutil.copytree(root / "set", tmp_path / "set")
    with pytest.raises(ArtifactError, match=r"lacks the experts \['../expert0', '../expert1'\]"):
        Writer(tmp_path / "set", Sampling())


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_new_tokens": 0}, "--max-new-tokens=0: use 1 or more"),
        ({"temperature": -1.0}, "--temperature=-1.0: use 0 or more"),
        ({"top_p": 0.0}, "--top-p=0.0: use above 0"),
        ({"top_k": -1}, "--top-k=-1: use 1 or more, or 0 for all"),
        ({"experts_per_token": 0}, "--experts-per-token=0: use 1 or more"),
        ({"experts_per_token": -2}, "--experts-per-token=-2: use 1 or more"),
    ],
)
def test_sampling_that_cannot_work_is_refused(root, changes, said):
    with pytest.raises(ConfigError, match=said):
        Writer(root / "set", dataclasses.replace(Sampling(), **changes))


def test_a_prompt_that_leaves_no_room_is_refused(root):
    with pytest.raises(
        ConfigError, match=r"--max-new-tokens=63 and a prompt of \d+ tokens do not fit .* of 64"
    ):
        Writer(root / "set", Sampling(max_new_tokens=63)).write(["human beings"])


def test_the_command_streams_a_single_prompt_and_shows_weights(root, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["generate", str(root / "set"), "human", "--max-new-tokens=3", "--weights"]
    )
    assert command.run(generate.main) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("human")
    assert len(rows) <= 3 and all(len(row.split()) >= 2 and 0 <= float(row.split()[0]) <= 1 for row in rows)


def test_a_single_prompt_is_on_screen_while_it_still_grows(root, capsys):
    writer, shown = Writer(root / "set", Sampling(max_new_tokens=20, temperature=1.0)), []
    writer._model.register_forward_pre_hook(lambda *_: shown.append(capsys.readouterr().out))
    (found,) = writer.write(["human beings"], on_screen=True)
    assert "".join([*shown, capsys.readouterr().out]) == found.text + "\n"
    assert sum(map(bool, shown)) > 2  # the prompt, and more than once what follows


def test_a_folder_that_is_no_set_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["generate", str(tmp_path), "human"])
    assert command.run(generate.main) == 2
    assert "is no exported set and no run; give runs/<name>" in capsys.readouterr().err
