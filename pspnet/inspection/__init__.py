"""`pspnet data inspect`: which layout a folder has, what its masks contain, and the params that fit.

The package turns a folder into an `Inspection`, which `console.py` prints and `writing.py` writes into params.yaml.
`ranking.py` ranks the ways to read the folder; if it is not sure of the first, the user chooses. May import `raw` and
everything below. Start at `inspecting.py`. Safe to change: guesses and remarks; nothing else depends on them.
"""
