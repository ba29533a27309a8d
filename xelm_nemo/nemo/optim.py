"""Our optimizer and learning-rate schedule as NeMo's modules."""

import dataclasses
from typing import Any

from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.lightning.pytorch.optim import LRSchedulerModule
from torch.optim.lr_scheduler import LambdaLR

from xelm_nemo.expert.config import OptimConfig, learning_rate


class LinearDecay(LRSchedulerModule):
    """Linear warm-up and linear decay to `min_lr` at the trainer's `max_steps`, as our own loop."""

    def __init__(self, config: OptimConfig) -> None:
        """Take the settings; NeMo's trainer sets `max_steps`."""
        super().__init__()
        self.config, self.max_steps = config, 1

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        """What Lightning steps after every step of the optimizer."""
        config = self.config
        schedule = LambdaLR(optimizer, lambda step: learning_rate(config, step, self.max_steps) / config.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def adamw(config: OptimConfig) -> nl.MegatronOptimizerModule:
    """AdamW over data-parallel ranks with our settings and schedule."""
    settings = dataclasses.asdict(config)
    del settings["lr_warmup_iters"]  # the schedule's
    optimizer = OptimizerConfig(optimizer="adam", use_distributed_optimizer=True, **settings)
    return nl.MegatronOptimizerModule(
        optimizer, lr_scheduler=LinearDecay(config), no_weight_decay_cond=_is_not_decayed
    )


def _is_not_decayed(name: str, parameter: Any) -> bool:
    """None is: our own loop decays biases and norms too, as metaseq; Megatron leaves them out by default."""
    return False
