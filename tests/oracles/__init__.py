"""Slow, simple second implementations. Our own implementations must agree with these."""
