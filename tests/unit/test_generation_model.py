"""The mixture as a Hugging Face model, against the experts' own logits mixed slowly."""

import pytest
import torch

from tests.helpers.random_opt import PRE_NORM, random_opt
from tests.helpers.random_xglm import GELU, VOCAB_SIZE, random_xglm
from xelm_nemo.errors import ConfigError
from xelm_nemo.generation.model import XelmConfig, XelmForCausalLM
from xelm_nemo.generation.routing import FixedRouting
from xelm_nemo.router.weights import keep_top_k

EOS, PAD = 2, 1
PROMPTS = [[2, 17, 201, 5], [2, 40, 41, 42, 43, 44, 45], [2, 99]]


class SumRouting:
    """Weights from the tokens before each one, with the router's lag; different at every token."""

    def __init__(self, num_experts, top_k=None):
        self.num_experts, self.top_k = num_experts, top_k

    def log_weights(self, ids, first):
        sums = torch.tensor([float(sum(ids[:j])) for j in range(first, len(ids))])
        scores = torch.stack([torch.sin(sums * (e + 1)) for e in range(self.num_experts)], -1)
        return keep_top_k(torch.log_softmax(3 * scores, -1), self.top_k)


@pytest.fixture(scope="module")
def experts():
    torch.manual_seed(0)
    return [random_xglm(**GELU) for _ in range(3)]


def mixture(experts, routing=None):
    config = XelmConfig(["a"] * len(experts), VOCAB_SIZE, 64, eos_token_id=EOS, pad_token_id=PAD)
    return XelmForCausalLM(config, experts, routing or SumRouting(len(experts)))


def slow_log_p(experts, ids, routing):
    """Log-probability of every next token after every token of one text, in float64 and without a cache."""
    with torch.no_grad():
        log_p = torch.stack(
            [torch.log_softmax(e(torch.tensor([ids])).logits[0].double(), -1) for e in experts]
        )
    log_w = routing.log_weights(ids, 0).double()
    return torch.logsumexp(log_p + log_w.T[..., None], 0)


def slow_greedy(experts, ids, routing, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(slow_log_p(experts, ids, routing)[-1].argmax()))
        if ids[-1] == EOS:
            break
    return ids


def padded(prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def generated(model, prompts, count=12, **how):
    how = {"do_sample": False, "max_new_tokens": count} | how
    rows = model.generate(**padded(prompts), **how).tolist()
    width = max(map(len, prompts))
    return [strip(prompt, row[width:]) for prompt, row in zip(prompts, rows, strict=True)]


def strip(prompt, new):
    end = new.index(EOS) + 1 if EOS in new else len(new)
    return prompt + new[:end]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_log_probabilities_are_those_of_the_slow_mixture(experts, prompt):
    model = mixture(experts)
    found = model(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(
        found.double(), slow_log_p(experts, prompt, model.routing), atol=1e-5, rtol=1e-5
    )


def test_one_expert_is_that_expert(experts):
    ids = torch.tensor(PROMPTS[:1])
    expected = torch.log_softmax(experts[0](ids).logits, -1)
    found = mixture(experts[:1], FixedRouting([1.0], top_k=None))(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_greedy_search_with_caches_is_the_argmax_of_computing_everything_again(experts, top_k):
    routing = SumRouting(3, top_k)
    for prompt in PROMPTS:
        expected = slow_greedy(experts, prompt, routing, 12)
        assert generated(mixture(experts, routing), [prompt]) == [expected]


@pytest.mark.parametrize("top_k", [None, 1])
def test_a_batch_gives_what_each_text_gives_alone(experts, top_k):
    model = mixture(experts, SumRouting(3, top_k))
    assert generated(model, PROMPTS) == [generated(model, [prompt])[0] for prompt in PROMPTS]


def test_experts_of_opt_are_mixed_alike():
    torch.manual_seed(1)
    experts = [random_opt(**PRE_NORM) for _ in range(2)]
    model = mixture(experts)
    assert generated(model, PROMPTS) == [slow_greedy(experts, p, model.routing, 12) for p in PROMPTS]


def test_beams_are_the_same_with_and_without_caches(experts):
    model = mixture(experts)
    how = {"num_beams": 3, "count": 6}
    assert generated(model, PROMPTS[:2], **how) == generated(model, PROMPTS[:2], use_cache=False, **how)


def test_sampling_follows_the_mixture(experts):
    model, prompt = mixture(experts), PROMPTS[0]
    likely = slow_log_p(experts, prompt, model.routing)[-1].exp()
    torch.manual_seed(0)
    drawn = model.generate(torch.tensor([prompt] * 4000), do_sample=True, top_k=0, max_new_tokens=1)[:, -1]
    found = torch.bincount(drawn, minlength=VOCAB_SIZE) / 4000
    assert (found - likely).abs().max() < 0.03
    best = generated(model, [prompt], do_sample=True, top_k=1)
    assert best == generated(model, [prompt])
    assert generated(model, [prompt], do_sample=True, top_p=1e-6, top_k=0) == best


@pytest.mark.parametrize("how", [{"top_k": 3}, {"top_k": 0, "top_p": 0.2}, {"top_k": 0, "temperature": 0.5}])
def test_tokens_are_drawn_from_what_sampling_leaves_of_the_mixture(experts, how):
    model, prompt = mixture(experts), PROMPTS[0]
    p = slow_log_p(experts, prompt, model.routing)[-1].exp()
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]  # probability of the likelier tokens
    left = torch.zeros_like(p)
    is_left = before < how.get("top_p", 1.0)
    is_left[how["top_k"] or VOCAB_SIZE :] = False
    left[order[is_left]] = p[order[is_left]] ** (1 / how.get("temperature", 1.0))
    torch.manual_seed(0)
    drawn = model.generate(torch.tensor([prompt] * 4000), do_sample=True, max_new_tokens=1, **how)[:, -1]
    found = torch.bincount(drawn, minlength=VOCAB_SIZE) / 4000
    assert (found[left == 0] == 0).all()
    assert (found - left / left.sum()).abs().max() < 0.03


def test_an_expert_without_weight_is_not_run_and_catches_up_when_it_has_some(experts):
    class FirstThenSecond:
        def log_weights(self, ids, first):
            return torch.tensor(
                [[0.0, -torch.inf] if j < 8 else [-torch.inf, 0.0] for j in range(first, len(ids))]
            )

    calls = []
    model = mixture(experts[:2], FirstThenSecond())
    for index, expert in enumerate(model.experts):
        expert.base_model.register_forward_pre_hook(
            lambda module, args, kwargs, index=index: calls.append((index, kwargs["input_ids"].shape[1])),
            with_kwargs=True,
        )
    found = generated(model, [PROMPTS[0]], count=8)
    for expert in model.experts:
        expert.base_model._forward_pre_hooks.clear()
    assert found == [slow_greedy(experts[:2], PROMPTS[0], FirstThenSecond(), 8)]
    assert calls == [(0, 4), (0, 1), (0, 1), (0, 1), (0, 1), (1, 9), (1, 1), (1, 1)]


def test_the_weights_of_every_token_are_there_afterwards(experts):
    model = mixture(experts)
    out = model.generate(
        **padded(PROMPTS[1:]), max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    ids, log_w = out.sequences[1], out.past_key_values.log_w_BSE[1]
    text = ids[5:-1].tolist()  # behind the padding, before the last token, from which nothing was predicted
    torch.testing.assert_close(log_w[-3:], model.routing.log_weights(text, len(text) - 3))
    assert log_w[:5].isnan().all()


def test_the_loss_is_that_of_the_mixture(experts):
    model, ids = mixture(experts), PROMPTS[1]
    log_p = slow_log_p(experts, ids, model.routing)
    expected = -sum(log_p[j, ids[j + 1]] for j in range(2, 6)) / 4
    labels = torch.tensor([[-100, -100, -100, *ids[3:]]])
    assert model(torch.tensor([ids]), labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("top_k", [None, 1])
def test_experts_that_take_turns_on_a_device_give_the_same(top_k):
    torch.manual_seed(0)
    experts = [random_xglm(**GELU) for _ in range(3)]
    model = mixture(experts, SumRouting(3, top_k))
    expected = generated(model, PROMPTS)
    model.place([torch.device("cpu")], [1000])
    assert generated(model, PROMPTS) == expected


def test_a_text_longer_than_the_context_is_refused(experts):
    model, whole = mixture(experts), [2] + [5] * 63
    out = model(**padded([whole]))
    with pytest.raises(ConfigError, match="a text of 65 tokens does not fit the context of 64; read it"):
        model(torch.tensor([[7]]), past_key_values=out.past_key_values)
    with pytest.raises(ConfigError, match="a text of 70 tokens"):
        model(**padded([whole + [5] * 6, PROMPTS[0]]))
    ids, mask = (torch.nn.functional.pad(each, (9, 0)) for each in padded([whole]).values())
    torch.testing.assert_close(model(ids, mask).logits[:, 9:], out.logits)  # padding takes no room


def test_a_cache_of_another_model_is_refused(experts):
    cache = experts[0](torch.tensor([[2, 3]])).past_key_values
    with pytest.raises(ValueError, match="another model"):
        mixture(experts)(torch.tensor([[4]]), past_key_values=cache)
