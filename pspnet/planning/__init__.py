"""Choose training settings: from the prepared set, this device and the minutes to spend, create a complete params.yaml
with reasons.

`facts.py` reads the prepared set (train and unlabeled, never test), `device.py` times training steps here, `rules.py`
turns both into choices, each with its reason. `planning.py` is the command that writes them. Each rule is a few lines
long, and the evidence for it is in docs/benchmarks.md. Imports `training` to time the real loop. Only `cli` imports it.
Safe to change: a rule, if you rerun the benchmark that supports it. Start at `rules.py`.
"""
