"""Weights that other projects have trained, under their names for the same tensors."""
