"""Slow, simple second implementations that ours must agree with."""
