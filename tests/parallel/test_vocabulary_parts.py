"""A vocabulary divided over ranks gives the mixture of the whole one."""

import os

import pytest
import torch
import torch.distributed as dist

from tests.helpers.megatron_cpu import free_ports, on_ranks
from xelm_nemo.ensemble.mixture import next_log_probs, target_log_prob

NUM_EXPERTS, NUM_TOKENS, WIDTH = 3, 5, 40  # of one rank
# The last has a second rank of padding alone.
VOCAB_SIZES = [80, 65, 40]


def inputs():
    torch.manual_seed(7)
    logits = 3 * torch.randn(NUM_EXPERTS, NUM_TOKENS, 2 * WIDTH)
    logits[1, :, 5] = -torch.inf
    log_w = torch.log_softmax(torch.randn(NUM_TOKENS, NUM_EXPERTS), -1)
    log_w[2, 0] = -torch.inf
    return logits, log_w, torch.tensor([5, 39, 0, 20, 38])


def rank_main(folder, port):
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo")
    rank, group = dist.get_rank(), dist.group.WORLD
    logits, log_w, target = inputs()
    own = logits[..., rank * WIDTH : (rank + 1) * WIDTH]
    mixed = {}
    for vocab_size in VOCAB_SIZES:
        shared = {"vocab_size": vocab_size, "tp_group": group}
        last = (target + vocab_size - 40) % vocab_size
        mixed[f"target {vocab_size}"] = target_log_prob(own, log_w, last, **shared)
        mixed[f"next {vocab_size}"] = next_log_probs(own, log_w, **shared)
    with pytest.raises(ValueError, match=r"target\[0\]=65 is outside the vocabulary"):
        target_log_prob(own, log_w, target + 60, vocab_size=65, tp_group=group)
    torch.save(mixed, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(2, rank_main, folder, free_ports(1)[0])
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_rank_has_the_targets_log_probability(ranks, vocab_size):
    logits, log_w, target = inputs()
    last = (target + vocab_size - 40) % vocab_size
    expected = target_log_prob(logits, log_w, last, vocab_size=vocab_size)
    for mixed in ranks:
        torch.testing.assert_close(mixed[f"target {vocab_size}"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_each_rank_has_its_columns_of_the_distribution(ranks, vocab_size):
    logits, log_w, _ = inputs()
    together = torch.cat([mixed[f"next {vocab_size}"] for mixed in ranks], -1)
    expected = next_log_probs(logits, log_w, vocab_size=vocab_size)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
