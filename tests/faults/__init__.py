"""Small wrong changes to the code, each of which some test must notice.

`listed.py` holds the ones picked by hand, `mutants.py` draws random ones, `trials.py` runs tests on a changed copy of
the tree, and `python -m tests.faults` prints what was caught.
"""
