"""Code shared by both training loops: batches, optimizer, checkpoints, several devices, and bit-for-bit
reproducibility.
"""
