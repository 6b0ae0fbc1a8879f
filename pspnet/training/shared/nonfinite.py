"""The error raised when a loss or gradient is not finite, and the images kept for inspection."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pspnet.errors import Problem, UserError
from pspnet.machine.outputs import whole_file

NAMED = 16  # maximum number of images named in the message; the file lists all of them


def not_finite(
    stage: str,
    values: Mapping[str, float],
    step: int,
    batch: Mapping[str, Tensor],
    sources: Sequence[str],
    folder: Path,
    rank: int,
    *,
    masks_fit: bool,
) -> UserError:
    """Save this device's images of the step, and return the error. `sources` lists the images of the whole step."""
    kept = folder / f"not-finite-{rank}.safetensors"
    with whole_file(kept) as path:
        facts = {"step": str(step), "sources": json.dumps(list(sources))}
        save_file({name: tensor.cpu().contiguous() for name, tensor in batch.items()}, path, facts)
    name, value = next((name, value) for name, value in values.items() if not math.isfinite(value))
    fix = f"In {stage}.optimizer, lower learning_rate, raise warmup_steps or set gradient_clip_norm."
    if not masks_fit:
        fix = "A mask contains a value that is neither a class nor ignored, so prepare the data again."
    more = f" and {len(sources) - NAMED} more" if len(sources) > NAMED else ""
    return UserError(
        Problem(
            stage,
            f"the {name} became {value} in step {step}",
            "a finite number",
            f"{fix} The images of the step are kept in {kept}: {', '.join(sources[:NAMED])}{more}",
        )
    )
