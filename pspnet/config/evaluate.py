"""`evaluate`: settings for the report."""

from pspnet.config.section import Count, Section


class EvaluateParams(Section):
    pictures: Count
    """Number of best images, and of worst images, on the page."""
