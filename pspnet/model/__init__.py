"""The network, its files and its device: PSPNet, its backbones, bundles.

May import `config` and everything below. Start at `network.py`; `bundle.py` reads and writes bundles. Tensor names must
not change, or older bundles become unreadable.
"""
