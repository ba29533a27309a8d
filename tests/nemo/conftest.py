"""NeMo in the process of the tests: what its trainer leaves behind does not reach the next test."""

import pytest


@pytest.fixture(autouse=True)
def no_world_left_behind():
    yield
    import torch.distributed as dist
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    get_cuda_rng_tracker().reset()

    if dist.is_initialized():
        from megatron.core import num_microbatches_calculator, parallel_state

        num_microbatches_calculator.destroy_num_microbatches_calculator()
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
