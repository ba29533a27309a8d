"""One optimizer step, through Megatron's schedules at any layout."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import get_cuda_rng_tracker, model_parallel_cuda_manual_seed

from xelm_nemo import device, parallel
from xelm_nemo.expert.data import Batch
from xelm_nemo.expert.graph import StepGraph
from xelm_nemo.expert.optim import update
from xelm_nemo.parallel import Layout


@device.span("step")
def train_step(
    model: Any,
    optimizer: Any,
    batches: Iterator[Batch],
    num_micro_batches: int,
    *,
    before_update: Callable[[], None] = lambda: None,
    graph: StepGraph | None = None,
) -> tuple[torch.Tensor, float]:
    """Forward, backward and, if the gradient is finite, update.

    `before_update` is called when weights and optimizer are about to change. With `graph`, which is of this
    model and number of micro-batches, forward and backward are recorded and replayed.

    Returns:
        The mean loss of the step in nats per token, a tensor on the device of every rank, and the norm
        of the gradient before clipping.
    """
    model.zero_grad_buffer()
    optimizer.zero_grad()
    with device.span("forward_backward"):
        loss = graph(batches) if graph else forward_backward(model, num_micro_batches, batches)
    with device.span("optimizer"):
        before_update()
        return loss, update(optimizer)


def forward_backward(model: Any, num_micro_batches: int, batches: Iterator[Batch]) -> torch.Tensor:
    """The mean loss of these micro-batches; the gradient is added to the model's."""
    return _run(model, batches, num_micro_batches, forward_only=False)


def find_scales(model: Any, batches: Iterator[Batch]) -> None:
    """Forward and backward for nothing, from which delayed scaling learns how large tensors are.

    It takes a tensor's scale from the steps before. Before the first there are none, all scales are 1, small
    gradients become 0, and what is left of them would move every weight by the whole learning rate.
    """
    batch = next(batches)
    batch.pop("weight", None)  # all labels count, for a source alone has no gradient to learn from
    _run(model, itertools.repeat(batch), 2, forward_only=False)


@device.span("validation")
def valid_loss(model: Any, num_micro_batches: int, batches: Iterator[Batch]) -> torch.Tensor:
    """Mean loss in nats per token over the batches, without dropout."""
    model.eval()
    with torch.no_grad():
        loss = _run(model, batches, num_micro_batches, forward_only=True)
    model.train()
    return loss


def seed_dropout(seed: int, iteration: int, layout: Layout) -> None:
    """Start this step's dropout from (seed, iteration, rank): no generator state need be saved to resume."""
    entropy = np.random.SeedSequence([seed, iteration, layout.pp_rank, layout.dp_rank])
    tracker = get_cuda_rng_tracker()
    generators = tracker.get_states()
    model_parallel_cuda_manual_seed(int(entropy.generate_state(1)[0]) >> 2)
    if tracker.use_cudagraphable_rng:  # a graph knows the old generators, so they take over the new seeds
        for name, new in tracker.get_states().items():
            generators[name].manual_seed(new.initial_seed())
        tracker.set_states(generators)


def _run(model: Any, batches: Iterator[Batch], num_micro_batches: int, *, forward_only: bool) -> torch.Tensor:
    config = model.config
    config.finalize_model_grads_func = finalize_model_grads
    first = next(batches)
    batch_size, seq_length = first["tokens"].shape
    losses: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, num_micro_batches),
        data_iterator=itertools.chain([first], batches),
        model=[model],
        num_microbatches=num_micro_batches,
        seq_length=seq_length,
        micro_batch_size=batch_size,
        forward_only=forward_only,
    )
    return _share_loss(losses)


def _forward_step(num_micro_batches: int, batches: Iterator[Batch], model: Any) -> Any:
    batch = next(batches)
    labels = batch["labels"]
    # What backward will bring to each loss, in its own order of division: the mean of the micro-batches.
    grad = torch.ones((), device=labels.device) / num_micro_batches / labels.numel()
    weight = batch.get("weight")
    if weight is not None:
        grad = grad * weight
    attention = batch.get("attention", {"attention_mask": None})
    options = {"labels": labels, "loss_mask": grad.expand_as(labels)} | attention
    output = model(batch["tokens"], batch.get("positions"), **options)
    return output, partial(_mean_loss, weight)


def _mean_loss(weight: torch.Tensor | None, loss_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # Every micro-batch has as many labels as the others, and weights have mean 1 over the step, not over each
    # micro-batch: so the mean of these means is that of the labels that count.
    loss = (loss_BS.float() if weight is None else loss_BS.float() * weight).mean()
    return loss, loss.detach().clone()  # the schedule divides the first in place


def _share_loss(losses: list[torch.Tensor]) -> torch.Tensor:
    """The mean over micro-batches and data-parallel ranks, known to all pipeline stages."""
    total = torch.stack(losses).mean() if losses else torch.zeros((), device=device.device())
    dist.all_reduce(total, group=parallel.data_parallel_group())
    total /= dist.get_world_size(parallel.data_parallel_group())
    return parallel.share_from_last_stage(total)
