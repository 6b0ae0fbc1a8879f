"""Losses: the distance of logits from masks, one number with a gradient.

Logits and masks go in, a loss comes out. May import `config`, `metrics` and `errors`. Start at `segmentation.py`. An
edit here reruns fine-tuning and all later stages.
"""
