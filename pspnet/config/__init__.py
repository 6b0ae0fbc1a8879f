"""params.yaml as types: one module per section, and nothing here has a default.

YAML goes in, checked numbers and choices come out; all mistakes are reported at once. May import `errors` only. Start
at `params.py`. Safe to change: the description of a field. A new field needs a line in params.yaml and every
recipe; in a section of several kinds, such as `pretrain.method`, only where that kind is used.
"""
