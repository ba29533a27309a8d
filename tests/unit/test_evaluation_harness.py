"""The model `xelm` of lm-evaluation-harness against the harness's own model `hf`, and the mixture slowly."""

import pytest

from tests.helpers.exported import TEXTS, evaluations_log_prob, export_two
from xelm_nemo.corpus.tokenizer import load_tokenizer

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'xelm_nemo[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.harness import XelmLM

PAIRS = [
    ("all human beings are", " born free"),
    ("viele menschen sind ", "frei geboren"),  # the space goes over to the continuation
    ("human beings have dignity", " and rights and rights and rights"),
    ("jeder", " hat"),
    ("", "everyone has a right"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_two(tmp_path_factory.mktemp("exported"))


def requests(kind, every):
    return [Instance(kind, {}, arguments, n) for n, arguments in enumerate(every)]


def stock(folder, **settings):
    """lm_eval's own model of a folder, which begins documents as ours does."""
    settings |= {"tokenizer": load_tokenizer(folder), "prefix_token_id": 2, "device": "cpu"}
    return get_model("hf")(pretrained=str(folder), **settings)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_one_expert_scores_continuations_as_the_harness_does(root, batch_size):
    asked = requests("loglikelihood", PAIRS)
    expected = stock(root / "expert0").loglikelihood(asked, disable_tqdm=True)
    found = XelmLM(root / "expert0", batch_size=batch_size).loglikelihood(asked, disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_one_expert_reads_long_texts_as_the_harness_does(root):
    asked = requests("loglikelihood_rolling", [(" ".join(TEXTS * 4),), (TEXTS[0],), ("",)])
    expected = stock(root / "expert0", add_bos_token=False, batch_size=4).loglikelihood_rolling(asked[:2])
    found = XelmLM(root / "expert0").loglikelihood_rolling(asked)
    assert found == pytest.approx([*expected, 0.0], abs=1e-3)


def test_one_expert_continues_texts_as_the_harness_does(root):
    settings = [{"until": ["e"], "max_gen_toks": 10}, {"until": ["\n\n"], "max_gen_toks": 7}]
    asked = requests("generate_until", [(text, how) for how in settings for text in TEXTS])
    expected = stock(root / "expert0", batch_size=1).generate_until(asked, disable_tqdm=True)
    assert XelmLM(root / "expert0").generate_until(asked) == expected


def test_two_experts_are_mixed_as_evaluation_mixes_them(root):
    model, tokenizer = XelmLM(root / "set"), load_tokenizer(root / "tokenizer")
    found = model.loglikelihood(requests("loglikelihood", PAIRS[:4]), disable_tqdm=True)
    for (context, continuation), (nats, _) in zip(PAIRS, found, strict=False):
        whole = [2, *tokenizer(context + continuation, add_special_tokens=False)["input_ids"]]
        given = len(tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"])
        assert nats == pytest.approx(evaluations_log_prob(root, whole)[given:].sum().item(), abs=1e-4)
    whole = [2, *tokenizer(TEXTS[3], add_special_tokens=False)["input_ids"]]
    (rolling,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", [(TEXTS[3],)]))
    assert rolling == pytest.approx(evaluations_log_prob(root, whole).sum().item(), abs=1e-4)


def test_the_number_of_experts_and_the_temperature_change_the_mixture(root):
    asked = requests("loglikelihood", PAIRS)
    outcomes = {
        tuple(XelmLM(root / "set", **settings).loglikelihood(asked, disable_tqdm=True))
        for settings in ({}, {"experts_per_token": 1}, {"temperature": 5.0})
    }
    assert len(outcomes) == 3


def test_options_may_be_mixed_by_sequence(root):
    asked = requests("loglikelihood", PAIRS)
    model = XelmLM(root / "set", mixing="sequence", temperature=1.0, experts_per_token=1)
    alone = [XelmLM(root / name).loglikelihood(asked, disable_tqdm=True) for name in ("expert0", "expert1")]
    found = model.loglikelihood(asked, disable_tqdm=True)
    for (nats, greedy), *of_experts in zip(found, *alone, strict=True):
        assert not greedy and nats < max(nats for nats, _ in of_experts)  # the weight of one is not 1
    with pytest.raises(
        ConfigError, match=r"mixing='words' is not known; use one of \['tokens', 'sequence', 'logits'\]"
    ):
        XelmLM(root / "set", mixing="words")


def test_options_may_be_scored_by_averaged_logits(root):
    asked = requests("loglikelihood", PAIRS)

    def found(name="set", **settings):
        return XelmLM(root / name, **settings).loglikelihood(asked, disable_tqdm=True)

    averaged = found(mixing="logits", temperature=1.0)
    assert averaged != found(temperature=1.0) and averaged != found(mixing="sequence", temperature=1.0)
    nearest = found(mixing="logits", experts_per_token=1)
    alone = list(zip(found("expert0"), found("expert1"), strict=True))
    for (nats, greedy), of_experts in zip(nearest, alone, strict=True):
        assert (pytest.approx(nats, abs=1e-4), greedy) in of_experts


def test_a_prompt_without_room_is_refused(root):
    asked = requests("generate_until", [("human", {"until": [], "max_gen_toks": 64})])
    with pytest.raises(ConfigError, match="max_gen_toks=64 leaves no room for a prompt in the context of 64"):
        XelmLM(root / "set").generate_until(asked)


def test_the_harness_knows_the_model_by_name(root):
    passed = {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}  # as its command does everywhere
    model = get_model("xelm").create_from_arg_string(f"pretrained={root / 'set'},dtype=float32", passed)
    assert model.max_length == 64
