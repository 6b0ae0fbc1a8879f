"""What pretraining taught a backbone: a linear classifier on its frozen features, and the page of `pretrain`.

The weights depend on none of this, so a checkpoint of `pretrain` survives an edit here (`machine/code.py`).
"""
