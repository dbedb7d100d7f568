"""Data-parallel training with shared-out optimizer states."""

from __future__ import annotations

import warnings

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer


class ShardedOptimizerDDP(DDPStrategy):
    """DDP in which each rank keeps the optimizer states of its share of the parameters (ZeRO, stage 1).

    Rajbhandari et al., arXiv:1910.02054. Weights, gradients and averages stay whole on every rank, so that rollouts
    call any part of a network directly. Adam's two moments, 8 bytes a parameter, become 8 / world size. Results are
    those of plain DDP; a checkpoint holds the joined states and resumes on any number of ranks.
    """

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Take the module's optimizers and schedules, and put a sharded optimizer in the place of each."""
        super().setup_optimizers(trainer)
        # Each schedule has watched the optimizer that it was made with, which never steps.
        warnings.filterwarnings("ignore", message=".*overridden after learning rate scheduler initialization.*")
        whole = self.optimizers
        self.optimizers = [_shard(optimizer) for optimizer in whole]
        position = {id(optimizer): index for index, optimizer in enumerate(whole)}
        for config in self.lr_scheduler_configs:
            scheduler = config.scheduler
            scheduler.optimizer = self.optimizers[position[id(scheduler.optimizer)]]


def _shard(optimizer: Optimizer) -> ZeroRedundancyOptimizer:
    """The same optimizer over the same groups, each rank stepping its share."""
    # No defaults are handed on: the groups hold every setting.
    return ZeroRedundancyOptimizer([dict(group) for group in optimizer.param_groups], optimizer_class=type(optimizer))
