"""scripts/sft.py on CPU processes that share the weights out: accelerate 1.15 does so for accelerators alone."""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from llmrec.cli import main

init = PartialState.__init__


def as_accelerators(self, *arguments, **options):
    init(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU


PartialState.__init__ = as_accelerators
sys.exit(main(["sft", *sys.argv[1:]]))
