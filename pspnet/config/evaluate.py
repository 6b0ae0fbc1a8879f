"""`evaluate`: the report."""

from pspnet.config.section import Count, Section


class EvaluateParams(Section):
    pictures: Count
    """How many of the best and how many of the worst images the page shows."""
