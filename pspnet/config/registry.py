"""`registry`: the name that versions are registered under."""

import re

from pydantic import field_validator

from pspnet.config.section import Section

DEMO_MODEL = "pspnet-demo"


class RegistryParams(Section):
    model: str
    """Models with different names are never compared. The name pspnet-demo is only for synthetic data."""

    @field_validator("model")
    @classmethod
    def _is_one_word(cls, model: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", model):
            raise ValueError("letters and digits, with . _ - between them")
        return model
