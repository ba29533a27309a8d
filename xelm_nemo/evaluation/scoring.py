"""Log-probabilities that models give the tokens of held-out documents, kept on disk once known.

Shape letters: T scored tokens of a document.
"""

import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo.ensemble.placement import Team
from xelm_nemo.errors import ArtifactError, CheckpointError
from xelm_nemo.evaluation.documents import EncodedDocument
from xelm_nemo.evaluation.passes import Model, Pass, log_probs
from xelm_nemo.files import fingerprint, load_arrays, save_arrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """A model that is loaded only when it is needed.

    Attributes:
        name: how reports call it, also the name of its file of log-probabilities.
        fingerprint: changes when the weights do.
        load: returns the model, ready to evaluate (no dropout) on the device of the evaluation.
        prefetch: begins to bring the weights into host memory, and returns at once.
        packs: whether texts may go through it end to end instead of padded to one length.
    """

    name: str
    fingerprint: str
    load: Callable[[], Model]
    prefetch: Callable[[], None] = lambda: None
    packs: bool = False


@dataclass(frozen=True)
class Scores:
    """The log-probabilities of one model on some documents, on disk once they are known."""

    source: ModelSource
    documents: Sequence[EncodedDocument]
    how: Pass

    @property
    def path(self) -> Path:
        """The file that holds them."""
        return self.how.folder / f"{self.source.name}.safetensors"

    def are_known(self) -> bool:
        """Whether there is nothing to compute: the file is of this very model, text and pass."""
        return not self.documents or self._read() is not None

    def compute(self, model: Model) -> NDArray[np.float32]:
        """Run the model on all documents.

        Raises:
            CheckpointError: the model gives a token a log-probability that is not finite.
        """
        scores = log_probs(model, self.documents, self.how, name=self.source.name, packs=self.source.packs)
        _check_finite(self.source.name, scores)
        return torch.cat(scores).numpy()

    def save(self, flat: NDArray[np.float32]) -> None:
        """Keep what `compute` gave."""
        save_arrays(self.path, {"log_p": flat, "key": self._key()})
        logger.info("scored %d documents with %s", len(self.documents), self.source.name)

    def read(self) -> list[Tensor]:
        """Nats, float32 [T], one tensor a document; they must be known."""
        if not self.documents:
            return []
        flat = self._read()
        assert flat is not None
        return list(torch.split(torch.from_numpy(flat), [document.num_tokens for document in self.documents]))

    def _read(self) -> NDArray[np.float32] | None:
        if not self.path.is_file():
            return None
        try:
            arrays = load_arrays(self.path)
        except ArtifactError as error:
            logger.warning("%s is computed again: %s", self.source.name, error)
            return None
        return arrays["log_p"] if np.array_equal(arrays["key"], self._key()) else None

    def _key(self) -> NDArray[np.uint8]:
        tokens = hashlib.sha256()
        for document in self.documents:
            tokens.update(np.array([len(document.ids), *document.ids], dtype="<i8").tobytes())
        # The batch size belongs to the key because the last bit of a matrix product depends on the shape.
        shape = [self.how.seq_length, self.how.stride, self.how.batch_tokens]
        key = fingerprint([self.source.fingerprint, tokens.hexdigest(), *shape])
        return np.frombuffer(bytes.fromhex(key), dtype=np.uint8)


def run_models(wanted: Sequence[Scores], team: Team) -> None:
    """Compute and save what is not known; all ranks of the team call it.

    One model at a time is on a device, and the one after it on its way to host memory.

    Raises:
        CheckpointError: a model gives a token a log-probability that is not finite.
    """
    unknown = [scores for scores in wanted if not scores.are_known()]
    team.wait()  # everybody has looked before anybody writes, so all have the same list
    turns = list(team.turns(len(unknown)))
    with ThreadPoolExecutor(1, "save") as disk:  # which takes its time while the next model runs
        saved = []
        for (index, is_ours), following in itertools.zip_longest(turns, turns[1:]):
            after = unknown[following[0]].source if following else None
            found = _run(unknown[index], after, is_ours=is_ours)
            if found is not None and team.leads_group:
                saved.append(disk.submit(unknown[index].save, found))
            for one in filter(Future.done, saved):
                one.result()  # a disk that refuses one refuses the others
    for one in saved:
        one.result()
    team.wait()


def _run(scores: Scores, after: ModelSource | None, *, is_ours: bool) -> NDArray[np.float32] | None:
    model = scores.source.load()
    if after is not None:
        after.prefetch()
    return scores.compute(model) if is_ours else None


def _check_finite(name: str, scores: Sequence[Tensor]) -> None:
    for n, score_T in enumerate(scores):
        if not torch.isfinite(score_T).all():
            raise CheckpointError(
                f"{name} gives document {n} of the evaluation a log-probability that is not finite: "
                "its training has diverged; see its metrics.jsonl and train it again with a lower optim.lr."
            )
