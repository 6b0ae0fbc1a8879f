"""`pspnet data inspect`: finds out which layout a folder has, what its masks contain, and which params fit.

This package turns a folder into an `Inspection`, which `console.py` prints and `writing.py` writes to params.yaml.
`ranking.py` ranks the ways to read the folder; if the best one is not certain, the user chooses. May import `raw` and
everything below. Start at `inspecting.py`. Safe to change: guesses and remarks, because nothing else depends on them.
"""
