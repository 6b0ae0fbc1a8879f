"""`pspnet data inspect`: which layout a folder has, what its masks hold, and the params that fit.

Turns a folder into an `Inspection`, which `console.py` prints and `writing.py` writes into params.yaml. `ranking.py`
ranks the ways to read the folder; if it is not sure of the first, a person chooses. May import `raw` and everything
below. Start at `inspecting.py`. Safe to change: guesses and remarks; nothing else depends on them.
"""
