"""Models and training states on disk: distributed checkpoints in folders that are whole or absent."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.filesystem import FileSystemReader

from xelm_nemo import artifacts, parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import writer
from xelm_nemo.checkpoint.distributed import KEY_PREFIX
from xelm_nemo.checkpoint.facts import WEIGHTS, ModelFacts, load_facts, write_facts
from xelm_nemo.checkpoint.host_memory import HostMemory
from xelm_nemo.checkpoint.iterations import iteration_folder, iteration_folders
from xelm_nemo.checkpoint.lazy import DTYPES
from xelm_nemo.checkpoint.masters import is_matrix, renew_weights, sharded_masters, without_matrices
from xelm_nemo.checkpoint.pickles import check_pickles
from xelm_nemo.checkpoint.saving import Plan, Save, room_on_disk
from xelm_nemo.errors import CheckpointError, first_line
from xelm_nemo.files import atomic_folder, remove
from xelm_nemo.model.config import (
    NO_FP8,
    NOT_SIZES,
    OPTIMIZER_BYTES,
    FP8Config,
    ModelConfig,
    ParallelConfig,
)
from xelm_nemo.model.gpt import DecoderModel, build_model

# The one format that Megatron does not call deprecated and that any layout can load.
_OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}
_MATRICES = "matrices"  # in a checkpoint's manifest, where the layers' are masters alone
_SLACK = 1 << 14  # bytes a parameter: ten tensors, each from a round address on

writer.use_threads()


# --- Finished models ------------------------------------------------------------------------------


def save_model(
    folder: Path,
    model: DecoderModel,
    facts: ModelFacts,
    recipe: Recipe,
    *,
    optimizer: Any = None,
    before_naming: Callable[[], None] = lambda: None,
) -> None:
    """Write a model folder: `weights/` under NeMo's key names and `model.json`. All ranks call it.

    Args:
        folder: to write.
        model: its weights are what is written.
        facts: of the model.
        recipe: what the weights were made by.
        optimizer: of the model, whose masters are written instead where the model has matrices in FP8.
        before_naming: called on rank 0 when all is written.
    """
    weights = _weights(model)
    if model.config.fp8_param:
        weights = sharded_masters(optimizer, weights, DTYPES[facts.dtype])
    with _collective_folder(folder, recipe, before_naming) as part:
        (part / WEIGHTS).mkdir(exist_ok=True)
        parallel.barrier()
        _save(weights, part / WEIGHTS)
        if dist.get_rank() == 0:
            write_facts(part, facts)


def load_model(
    folder: Path,
    layout: ParallelConfig,
    *,
    dtype: torch.dtype | None = None,
    shape: ModelConfig | None = None,
    fp8: FP8Config = NO_FP8,
    by_all_ranks: bool = True,
) -> DecoderModel:
    """This rank's part of a finished model, at any layout.

    Args:
        folder: a model folder.
        layout: the layout wanted now; the one it was saved at does not matter.
        dtype: of the weights; None keeps what is on disk.
        shape: the shape wanted; its dropout counts, its sizes must be those on disk. None takes the
            shape on disk.
        fp8: which products of the model are in FP8; with `param_gather` the weights are not read yet, and
            `load_masters` has to.
        by_all_ranks: whether all ranks there are load this model, or others load others meanwhile.

    Raises:
        CheckpointError: weights are missing or of another shape.
    """
    facts = load_facts(folder)
    if shape is not None:
        _check_sizes(folder, facts.shape, shape)
    numbers: dict[str, Any] = {"dtype": dtype or DTYPES[facts.dtype], "fp8": fp8}
    model = build_model(shape or facts.shape, layout, vocab_size=facts.vocab_size, **numbers)
    if not fp8.param_gather:
        load_weights(model, folder, by_all_ranks=by_all_ranks)
    return model


def load_masters(folder: Path, model: DecoderModel, optimizer: Any) -> None:
    """Fill the optimizer's master weights from a model folder, number by number, and the model from them."""
    _load(sharded_masters(optimizer, _weights(model)), folder / WEIGHTS)
    renew_weights(optimizer)


def _check_sizes(folder: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    there, asked = dataclasses.asdict(found), dataclasses.asdict(wanted)
    differing = [
        f"{key}={there.get(key)!r} (model.{key}={asked.get(key)!r})"
        for key in there | asked
        if key not in NOT_SIZES and there.get(key) != asked.get(key)
    ]
    if differing:
        raise CheckpointError(f"{folder} has {', '.join(differing)}; set the model's keys to what it has.")


def load_weights(model: DecoderModel, folder: Path, *, by_all_ranks: bool = True) -> None:
    """Fill a model from a model folder."""
    state = _load(_weights(model), folder / WEIGHTS, by_all_ranks=by_all_ranks)
    model.load_state_dict({key.removeprefix(KEY_PREFIX): value for key, value in state.items()}, strict=False)


def _weights(model: DecoderModel) -> dict[str, Any]:
    """The sharded state dict without FP8 scales, which differ between layer implementations."""
    state = model.sharded_state_dict(prefix=KEY_PREFIX)
    # moe_experts number theirs: _extra_state0 and so on
    return {key: value for key, value in state.items() if "_extra_state" not in key}


# --- Training states ------------------------------------------------------------------------------


class Checkpoints:
    """The training states of one run, `<folder>/iter_<n>`: the newest `keep` of them.

    A state is saved while training goes on: `begin` returns once the copy to the host's memory has begun, and
    `go_on` does, between steps, what is due.
    """

    def __init__(self, folder: Path, agreement: parallel.Agreement, *, keep: int) -> None:
        """Look at a folder, which need not exist yet. All ranks call every method that saves."""
        self._folder, self._agreement, self._keep = folder, agreement, keep
        self._memory, self._plan = HostMemory(), Plan()
        self._save: Save | None = None

    def iterations(self) -> list[int]:
        """The iterations that have a whole checkpoint, ascending."""
        return list(iteration_folders(self._folder))

    def expect(self, model: DecoderModel) -> None:
        """Begin to make the memory ready that a copy will take, beside the first steps.

        Data-parallel ranks write a part each of the optimizer's state, and the first of them all weights.
        """
        group = parallel.data_parallel_group()
        state, writes = OPTIMIZER_BYTES / dist.get_world_size(group), dist.get_rank(group) == 0
        sizes = [
            parameter.numel() * (writes * _is_saved(model, name) * parameter.element_size() + state) + _SLACK
            for name, parameter in model.named_parameters()
        ]
        self._memory.reserve(round(sum(sizes)))

    def begin(
        self,
        iteration: int,
        model: DecoderModel,
        optimizer: Any,
        *,
        before_naming: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to save model and optimizer; they must not change before `wait_for_copy`.

        Args:
            iteration: of the state.
            model: with the optimizer, what is saved.
            optimizer: of the model.
            before_naming: called on rank 0, in a thread, when all is written.
        """
        self.end()
        settings = {"iteration": iteration} | ({_MATRICES: "masters"} if model.config.fp8_param else {})
        recipe, folder = Recipe("checkpoint", settings), contextlib.ExitStack()
        folder.enter_context(self._dropping_others())
        part = folder.enter_context(_named_folder(self._path(iteration), recipe, before_naming))
        parallel.barrier()
        state = self._state(model, optimizer, loading=False)
        if model.config.fp8_param:
            state["model"] = without_matrices(state["model"])
        self._save = Save(
            state, part, folder, plan=self._plan, memory=self._memory, agreement=self._agreement
        )

    def wait_for_copy(self) -> None:
        """Have the device wait, from here on, for a copy that is being made."""
        if self._save is not None:
            self._save.wait_for_copy()

    def go_on(self) -> None:
        """Do what is due for the state that is being saved, if any, without waiting.

        Raises:
            CheckpointError: it could not be written; what was there before is whole.
        """
        if self._save is not None and self._save.has_ended():
            self._save = None

    def end(self) -> None:
        """Wait until the state that is being saved, if any, is whole and has its name.

        Raises:
            CheckpointError: as `go_on`.
        """
        save, self._save = self._save, None
        if save is not None:
            save.end()

    def abandon(self, error: BaseException) -> None:
        """Give up the state that is being saved, if any, and leave nothing half-written of it."""
        save, self._save = self._save, None
        if save is not None:
            save.abandon(error)

    @contextlib.contextmanager
    def _dropping_others(self) -> Iterator[None]:
        """On rank 0, delete what killed saves left, before the block, and states beyond `keep`, after it."""
        if dist.get_rank() != 0:
            yield
            return
        for left in self._folder.glob(".iter_*"):
            remove(left)
        yield
        for old in map(self._path, self.iterations()[: -self._keep]):
            hidden = old.with_name(f".{old.name}.old")  # a folder half deleted is not to look whole
            remove(old.rename(hidden))

    def load_latest(self, model: DecoderModel, optimizer: Any) -> int:
        """Restore the newest state at any layout. Returns its iteration, 0 when there is none."""
        iterations = self.iterations()
        if not iterations:
            return 0
        path = self._path(iterations[-1])
        settings = artifacts.check(path, "checkpoint")["recipe"]["settings"]
        _check_division(path, optimizer)
        from_masters = model.config.fp8_param or _MATRICES in settings
        state = self._state(model, optimizer, loading=True)
        if from_masters:
            state["model"] = without_matrices(state["model"])
        state = _load(state, path)
        model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        if from_masters:
            renew_weights(optimizer)
        return iterations[-1]

    def _path(self, iteration: int) -> Path:
        return iteration_folder(self._folder, iteration)

    @staticmethod
    def _state(model: DecoderModel, optimizer: Any, *, loading: bool) -> dict[str, Any]:
        sharded = model.sharded_state_dict()
        optimizer_state = optimizer.sharded_state_dict(
            sharded, is_loading=loading, metadata=_OPTIMIZER_FORMAT
        )
        return {"model": sharded, "optimizer": optimizer_state}


def _is_saved(model: DecoderModel, name: str) -> bool:
    """Whether a checkpoint has a weight of this name, beside its master."""
    return not (model.config.fp8_param and is_matrix(name))


def _check_division(path: Path, optimizer: Any) -> None:
    """See that moe_experts are divided, or whole, as they were: divided ones have their own optimizer."""
    check_pickles(path)
    index = FileSystemReader(path).read_metadata()
    were = any(key.startswith("chained_") for key in index.state_dict_metadata)
    if were != (len(optimizer.chained_optimizers) > 1):
        use = "2 or more" if were else "1"
        raise CheckpointError(
            f"{path} was written with parallel.expert_model_parallel_size of {use}; set it so, and go on."
        )


def _save(sharded_state: dict[str, Any], folder: Path) -> None:
    with room_on_disk(folder):
        dist_checkpointing.save(sharded_state, str(folder))


def _load(sharded_state: dict[str, Any], folder: Path, *, by_all_ranks: bool = True) -> dict[str, Any]:
    check_pickles(folder)
    try:
        # Megatron's check is of what all ranks ask for together, as parts of one model.
        state: dict[str, Any] = dist_checkpointing.load(
            sharded_state, str(folder), validate_access_integrity=by_all_ranks
        )
    except (CheckpointingException, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not fit the model: {first_line(error)}") from error
    return state


@contextlib.contextmanager
def _collective_folder(folder: Path, recipe: Recipe, before_naming: Callable[[], None]) -> Iterator[Path]:
    """Rank 0 makes the folder, all ranks fill it, rank 0 gives it its name once it is whole."""
    with _named_folder(folder, recipe, before_naming) as part:
        parallel.barrier()
        yield part
        parallel.barrier()
    parallel.barrier()


@contextlib.contextmanager
def _named_folder(folder: Path, recipe: Recipe, before_naming: Callable[[], None]) -> Iterator[Path]:
    """What rank 0 does for a folder; other ranks only learn where to write."""
    if dist.get_rank() != 0:
        yield folder.with_name(f".{folder.name}.part")
        return
    stamp = recipe.stamp()
    artifacts.check_replaceable(folder, recipe.kind)
    with atomic_folder(folder) as part:
        yield part
        artifacts.write_manifest(part, stamp)
        before_naming()
