"""`runtime`: settings shared by all stages that compute. Each setting can change the exact bits of a result."""

from typing import Literal

from pspnet.config.section import AtLeastOne, Count, Section


class RuntimeParams(Section):
    seed: Count
    """Determines every random choice."""
    threads: AtLeastOne
    """CPU threads per operation. Sums are split among threads, so their number affects the last digits."""
    precision: Literal["fp32", "bf16"]
    """bf16 is faster on GPUs and on CPUs with bf16 instructions, and several times slower on other CPUs."""
    compile: bool
    """Whether to train with torch.compile, which takes minutes to start and is then faster on GPUs. It needs a C++
    compiler, and a run that was killed and resumed can differ in the last digits from an uninterrupted run."""
