"""`serve`: limits on one request."""

from pspnet.config.section import AtLeastOne, Positive, Section


class ServeParams(Section):
    max_images: AtLeastOne
    """Maximum number of images in one request."""
    max_image_mb: Positive
    """Maximum size of one encoded image, in megabytes (10^6 bytes)."""
    max_megapixels: Positive
    """A larger image is rejected before it is decoded."""
