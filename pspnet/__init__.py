"""Keeps a PSPNet segmentation model trained, measured and promoted."""
