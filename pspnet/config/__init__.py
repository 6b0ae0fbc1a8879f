"""params.yaml as types: one module per section, with no defaults.

YAML goes in, and checked numbers and choices come out. All mistakes are reported at once. May import only `errors`.
Start at `params.py`. Safe to change: the description of a field. A new field needs a line in params.yaml and every
recipe. In a section with several kinds, such as `pretrain.method`, it needs a line only where that kind is used.
"""
