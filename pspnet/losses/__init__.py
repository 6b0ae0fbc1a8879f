"""Losses: the distance between logits and masks, as one number with a gradient.

Logits and masks go in, and a loss comes out. May import `config`, `metrics` and `errors`. Start at `segmentation.py`.
Any change here reruns fine-tuning and all later stages.
"""
