"""`serve`: what one request may ask of the server."""

from pspnet.config.section import AtLeastOne, Positive, Section


class ServeParams(Section):
    max_images: AtLeastOne
    """Images of one request."""
    max_image_mb: Positive
    """Size of one image as it is sent, in megabytes (10^6 bytes)."""
    max_megapixels: Positive
    """A larger image is refused before it is decoded."""
