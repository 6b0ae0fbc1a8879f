"""Weights trained by other projects, which have other names for the same tensors."""
