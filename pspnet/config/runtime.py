"""`runtime`: what the stages that compute have in common. Each of these changes the bits of a result."""

from typing import Literal

from pspnet.config.section import AtLeastOne, Count, Section


class RuntimeParams(Section):
    seed: Count
    """Every random choice follows from it."""
    threads: AtLeastOne
    """Threads of one operation on the CPU: sums are split over them, so their number shows in the last digits."""
    precision: Literal["fp32", "bf16"]
    """bf16 is faster on GPUs and on CPUs that have its instructions, and several times slower on others."""
    compile: bool
    """Have torch.compile translate the network for training: minutes at the start, then faster on GPUs. It needs a C++
    compiler, and a training that was killed may then differ in the last digits from one that was not."""
