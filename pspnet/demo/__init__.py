"""Synthetic street scenes to try the pipeline on. May import `machine` and below; only `cli` imports it."""
