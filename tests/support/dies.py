"""A stage whose process of one rank is killed as an optimiser step begins: dies.py RANK STEP STAGE --config FILE.

Rank -1 kills nobody. Under FSDP, weights are shared out on the CPU, too; see fsdp_on_cpu.py.
"""

import os
import signal
import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from llmrec.cli import main
from llmrec.runtime import processes
from llmrec.training.trainer import SidTrainer

rank, step = map(int, sys.argv[1:3])
init, training_step = PartialState.__init__, SidTrainer.training_step


def as_accelerators(self, *arguments, **options):
    init(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU


def die_or_train(self, *arguments, **options):
    if processes.rank() == rank and self.state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return training_step(self, *arguments, **options)


if processes.sharding() == "FSDP":
    PartialState.__init__ = as_accelerators
SidTrainer.training_step = die_or_train
sys.exit(main(sys.argv[3:]))
