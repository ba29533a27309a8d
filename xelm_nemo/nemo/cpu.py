"""What NeMo needs on a machine without CUDA, beyond what Megatron needs."""

from nemo.lightning.io import pl

from xelm_nemo import device


def enter(*, threads: int = 1) -> None:
    """Prepare this process to run NeMo on its device; call it before NeMo's trainer is made.

    Args:
        threads: CPU threads of one operation. The bits of a result depend on it.
    """
    device.enter(threads=threads)
    if not device.has_cuda():
        pl._fix_tensors_device = lambda checkpoint: checkpoint  # it would name a CUDA device by number
