"""The data that training and evaluation read: the prepared set, its shards, crops, views and augmentations.

Turns bytes of the prepared set into arrays. May import `config`, `machine` and the rooms below. Start at
`store/prepared.py`. Only `augmentation.py` knows albumentations.
"""
