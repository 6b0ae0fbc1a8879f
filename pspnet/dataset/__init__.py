"""The data for training and evaluation: the prepared set, its shards, crops, views and augmentations.

Turns the bytes of the prepared set into arrays. May import `config`, `machine` and the rooms below them. Start at
`store/prepared.py`. Only `augmentation.py` uses albumentations.
"""
