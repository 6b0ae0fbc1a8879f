"""Numbers from data: the prepared set, this device and the minutes to spend -> a complete params.yaml with reasons.

`facts.py` reads the prepared set (train and unlabeled, never test), `device.py` times training steps here, `rules.py`
turns both into choices, each with its reason. `planning.py` is the command, which writes them. A rule is a few lines;
its evidence is in docs/benchmarks.md. Imports `training` to time the real loop; only `cli` imports it. Safe to change:
a rule, if the benchmark that supports it was run again. Start in `rules.py`.
"""
