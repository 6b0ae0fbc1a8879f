"""The network, its files and its device: PSPNet, its backbones, bundles.

May import `config` and everything below. Start at `network.py`; `bundle.py` reads and writes bundles. The names of
tensors must not change, or older bundles cannot be read.
"""
