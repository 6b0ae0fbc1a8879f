"""Small wrong changes to the code. At least one test must notice each change.

`listed.py` reads the changes picked by hand, `mutants.py` draws random changes, `trials.py` runs tests on a changed
copy of the tree, and `python -m tests.faults` prints which changes were caught.
"""
