"""`registry`: the name under which models are kept."""

from typing import Annotated

from pydantic import StringConstraints

from pspnet.config.section import Section

DEMO_MODEL = "pspnet-demo"


class RegistryParams(Section):
    model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Models of different names are never compared. The name pspnet-demo is for synthetic data only."""
