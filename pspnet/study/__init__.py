"""Does it pay on your data? Trains the network in several ways on parts of the masks, and compares the results.

The prepared set and params.yaml go in; study.csv and study.html come out. An arm (`arms.py`) is a way to train, a run
is an arm with a number of masks and a seed (`grid.py`), `training.py` trains one, `comparing.py` turns the results into
paired differences, and `studying.py` is the command. Imports `training`, `tracking` and everything below; only `cli`
imports it. Safe to change: the page (`study.html.j2`). An edit to `training.py` or `subsets.py` changes the keys of the
runs: they are then made again. Start in `studying.py`.
"""
