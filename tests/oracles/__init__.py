"""Slow and plain second implementations, which ours must agree with."""
