"""What NeMo needs on a machine without CUDA, beyond what Megatron needs."""

from megatron.core.parallel_state import get_pipeline_model_parallel_rank
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from nemo.lightning import megatron_init
from nemo.lightning.io import pl

from xelm_nemo import device

_seed_generators = megatron_init._set_random_seed


def enter(*, threads: int = 1) -> None:
    """Prepare this process to run NeMo on its device; call it before NeMo's trainer is made.

    Args:
        threads: CPU threads of one operation. The bits of a result depend on it.
    """
    device.enter(threads=threads)
    if not device.has_cuda():
        pl._fix_tensors_device = lambda checkpoint: checkpoint  # it would name a CUDA device by number
        megatron_init._set_random_seed = _seed_all_generators


def _seed_all_generators(seed: int) -> None:
    """Seed those of tensor-parallel regions too, for which NeMo looks for a GPU; the seed is as there."""
    _seed_generators(seed)
    model_parallel_cuda_manual_seed(seed + 100 * get_pipeline_model_parallel_rank())
