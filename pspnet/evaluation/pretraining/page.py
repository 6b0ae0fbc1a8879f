"""The page of `pretrain`: what the backbone has learned. The same training always gives the same bytes."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pspnet.evaluation.pages.charts import charts
from pspnet.evaluation.pages.templates import data_url, page_template
from pspnet.evaluation.pretraining.probing import Probe, in_words

Reconstruction = tuple[str, dict[str, NDArray[np.uint8]]]  # the image's path, and (H, W, 3) pictures by what they show


def write_page(
    method: str, history: pd.DataFrame, probes: list[Probe], reconstructions: list[Reconstruction], path: Path
) -> None:
    """Write the page. Without probes, there were no masks to learn or to measure."""
    template = page_template(Path(__file__).with_name("page.html.j2"), score=_score)
    page = template.render(
        method=method,
        charts=charts(history),
        probes=probes,
        in_words=in_words(probes) if probes else "",
        reconstructions=[
            (source, {name: data_url(image) for name, image in pictures.items()})
            for source, pictures in reconstructions
        ],
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def _score(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.3f}"
