"""Real ranks over gloo, small training jobs for them, and a look at what they wrote."""

import dataclasses
import itertools
import os
import random
import shutil
import socket
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

VOCAB_SIZE = 300  # padded to 384 rows at one tensor-parallel rank and to 512 at two
SEQ_LENGTH = 32
CLUSTERS = [0, 1]


def on_ranks(num_ranks, function, *args):
    """Call `function(*args)` in `num_ranks` new processes; the first failure is raised here.

    The function, at the top of a module, opens process groups with `process_group`.
    """
    torch.multiprocessing.spawn(_rank_main, (num_ranks, function, args), nprocs=num_ranks)


def _rank_main(rank, num_ranks, function, args):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), MASTER_ADDR="127.0.0.1"
    )
    function(*args)


# Below those that the system gives to sockets which ask for any, as NCCL's do.
_PORTS = itertools.cycle(random.sample(range(20_000, 32_000), 12_000))


def free_ports(count):
    """TCP ports that nobody listens on, all different."""
    return list(itertools.islice(filter(_is_free, _PORTS), count))


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def train_in_turn(folders, ports):
    """Train jobs one after another on these ranks, a process group each."""
    from xelm_nemo.expert.job import TrainJob
    from xelm_nemo.expert.loop import train

    for folder, port in zip(folders, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        train(TrainJob.load(folder))


def save_at(source, target, layout, port):
    """What each rank does: load a model folder at a layout, and save it from there."""
    from xelm_nemo import parallel
    from xelm_nemo.artifacts import Recipe
    from xelm_nemo.checkpoint import store
    from xelm_nemo.checkpoint.facts import load_facts

    os.environ["MASTER_PORT"] = str(port)
    sizes = {
        "tensor_model_parallel_size": layout.tensor_model_parallel_size,
        "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
    }
    with parallel.model_parallel(**sizes):
        model = store.load_model(source, layout)
        store.save_model(target, model, load_facts(source), Recipe("model", {}))


def logits_at_layout(model, tokens_BS):
    """The model's logits [B, S, V] over all pipeline stages; None on stages before the last."""
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    def forward_step(_, model):
        return model(tokens_BS, None, None), keep

    def keep(output, non_loss_data):
        return gather_from_tensor_model_parallel_region(output)[..., : model.real_vocab_size]

    batch_size, seq_length = tokens_BS.shape
    with torch.no_grad():
        found = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=None,
            model=[model.eval()],
            num_microbatches=1,
            seq_length=seq_length,
            micro_batch_size=batch_size,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return found[0] if found else None


def write_tokens(folder):
    """Token shards of random documents for two clusters."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path

    from xelm_nemo.shards.build import shard_prefix, write_counts

    rng = np.random.default_rng(0)
    for cluster in CLUSTERS:
        for split in ("train", "valid"):
            prefix = shard_prefix(folder, cluster, split)
            prefix.parent.mkdir(parents=True, exist_ok=True)
            builder = IndexedDatasetBuilder(get_bin_path(str(prefix)), dtype=np.uint16)
            for length in rng.integers(10, 60, size=12):
                tokens = rng.integers(4, VOCAB_SIZE, size=length).astype(np.uint16)
                builder.add_document(tokens, [length])
            builder.finalize(get_idx_path(str(prefix)))
    write_counts(folder, VOCAB_SIZE, {})


def write_sources(folder):
    """Make the documents of token shards instruction data, with sources of random length."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    from xelm_nemo.shards import sources
    from xelm_nemo.shards.build import shard_prefix

    rng = np.random.default_rng(1)
    for cluster in CLUSTERS:
        for split in ("train", "valid"):
            prefix = shard_prefix(folder, cluster, split)
            shard = IndexedDataset(str(prefix))  # its arrays are gone when it is
            sources.write_sources(prefix, rng.integers(1, shard.sequence_lengths).astype(np.int32))


def write_seed_model(folder, shape, *, seed=1, dtype="fp32"):
    """A model folder with random weights."""
    from xelm_nemo import parallel
    from xelm_nemo.artifacts import Recipe
    from xelm_nemo.checkpoint import store
    from xelm_nemo.checkpoint.lazy import DTYPES
    from xelm_nemo.model.config import ParallelConfig
    from xelm_nemo.model.gpt import build_model

    with parallel.model_parallel(seed=seed):
        model = build_model(shape, ParallelConfig(), vocab_size=VOCAB_SIZE, dtype=DTYPES[dtype])
        facts = store.ModelFacts(shape=shape, vocab_size=VOCAB_SIZE, dtype=dtype, tokenizer="none")
        store.save_model(folder, model, facts, Recipe("model", {}))


@dataclasses.dataclass(frozen=True)
class Workshop:
    """A folder with token shards and a seed model, where jobs are made."""

    folder: Path

    def set_up(self, shape):
        """Write the shards and the seed model."""
        write_tokens(self.folder / "tokens")
        write_seed_model(self.folder / "seed_model", shape)

    def job(self, name, shape, *, layout=None, **changes):
        """The folder of a new training job of one iteration with 8 sequences each."""
        from xelm_nemo.expert.config import OptimConfig
        from xelm_nemo.expert.job import TrainJob
        from xelm_nemo.model.config import ParallelConfig

        settings = {
            "clusters": CLUSTERS,
            "train_iters": 1,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "seq_length": SEQ_LENGTH,
            "seed": 1,
            "log_interval": 1,
            "save_interval": 1,
            "eval_interval": 1,
            "eval_sequences": 5,  # which no layout divides evenly
            # No clipping, and no momentum: Adam's first moment is then the last gradient itself.
            "optim": OptimConfig(lr=1e-3, adam_beta1=0.0, clip_grad=0.0),
        }
        job = TrainJob(
            name=name,
            folder=str(self.folder / name),
            init=str(self.folder / "seed_model"),
            tokens=str(self.folder / "tokens"),
            tokenizer="none",
            shape=shape,
            parallel=layout or ParallelConfig(),
            **{"dtype": "fp32"} | settings | changes,
        )
        Path(job.folder).mkdir(parents=True)
        job.save()
        return Path(job.folder)


def moved(folder, layout, *, name, without=()):
    """A copy of a job as a kill leaves it before its model and the checkpoints in `without` are written.

    It is to be taken up at another layout.
    """
    from xelm_nemo.expert.job import JOB, TrainJob

    copy = folder.with_name(name)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("model", *without))
    job = dataclasses.replace(TrainJob.load(copy), name=name, folder=str(copy), parallel=layout)
    (copy / JOB).unlink()
    job.save()
    return copy


def losses(job_folder):
    """Name and iteration -> loss, of everything that a job logged."""
    from xelm_nemo.log import METRICS, read_metrics

    return {
        (name, line["iteration"]): line[name]
        for line in read_metrics(job_folder / METRICS)
        for name in ("loss", "valid_loss")
        if name in line
    }


def checkpoint_tensors(folder):
    """Every tensor of a distributed checkpoint, whole, by its name there and without vocabulary padding."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if hasattr(entry, "size")
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return {
        name: tensor[:VOCAB_SIZE] if "word_embeddings" in name else tensor for name, tensor in tensors.items()
    }


def optimizer_state(job_folder, iteration, kind):
    """Parameter -> what a job's checkpoint has of it: "param", its master, or Adam's "exp_avg"."""
    mark = f"optimizer.state.{kind}."
    tensors = checkpoint_tensors(job_folder / f"checkpoints/iter_{iteration:07d}")
    return {name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)}


def gradients(job_folder, iteration):
    """Parameter -> its gradient in a step of a job that trained without momentum."""
    return optimizer_state(job_folder, iteration, "exp_avg")


def relative_errors(found, expected):
    """Tensor name -> the largest difference, in units of the largest element expected."""
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name in expected
    }
