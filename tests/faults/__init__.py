"""Small wrong changes to the code, each of which at least one test must notice.

`listed.py` reads the changes picked by hand, `mutants.py` draws random ones, `trials.py` runs tests on a changed copy
of the tree, and `python -m tests.faults` prints which changes were caught.
"""
