"""Settings of training one model, expert or dense."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear decay; defaults are X-ELM's."""

    lr: float = 1e-4
    min_lr: float = 0.0  # reached at train_iters
    lr_warmup_iters: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-6
    clip_grad: float = 1.0


def learning_rate(config: OptimConfig, iteration: int, train_iters: int) -> float:
    """The rate of iteration 0, 1, ...: linear warm-up, then linear decay to min_lr at `train_iters`.

    metaseq's polynomial decay of power 1, as X-ELM trains.
    """
    if iteration < config.lr_warmup_iters:
        return config.lr * (iteration + 1) / config.lr_warmup_iters
    decay_iters = max(1, train_iters - config.lr_warmup_iters)
    left = 1 - (iteration - config.lr_warmup_iters) / decay_iters
    return config.min_lr + (config.lr - config.min_lr) * max(0.0, left)


@dataclass(frozen=True)
class TrainingConfig:
    """The length and the batches of training. Batch sizes count sequences."""

    train_iters: int = 20_000
    global_batch_size: int = 256  # a step of all experts together; each takes its 1/num_clusters
    micro_batch_size: int = 8
    seq_length: int | None = None  # None: as long as model.max_position_embeddings
    document_mask: bool = False  # tokens of a packed sequence see their own document alone
    seed: int = 1234
    train_clusters: list[int] | None = None  # None trains every expert
    log_interval: int = 10  # iterations a line of log
    save_interval: int = 100  # iterations a checkpoint
    eval_interval: int = 100  # iterations a validation
    cuda_graphs: bool = True  # run forward and backward as one CUDA graph, where that is possible
    deterministic: bool = False  # the same bits in every run on a GPU too; attention's backward is slower
    skip_bad_steps: int = 0  # steps in a row whose gradient is no number that are left out; one more stops
    eval_sequences: int = 64  # sequences a validation reads at most
    profile_iters: list[int] | None = None  # iterations that torch's profiler traces, the first is 1
    wandb_project: str | None = None  # on Weights & Biases, with a run for each model


@dataclass(frozen=True)
class CheckpointConfig:
    """What stays of training states on the disk."""

    keep_last: int = 2  # the newest so many, while a model trains
    keep_best: bool = False  # the weights whose validation loss is the lowest, beside them
    resume_at: int | None = None  # go back to the checkpoint of this iteration; None: the newest
    keep_optimizer: bool = True  # them also when the model is finished; false keeps its weights alone


@dataclass(frozen=True)
class DenseConfig:
    """The dense baseline: one model on all clusters, for as many tokens as all experts together."""

    enabled: bool = False
    train_iters: int | None = None  # None: as the experts
    lr: float | None = None  # None: as the experts
