"""Weights trained by other projects, which use different names for the same tensors."""
