"""Imported last by the server of `tests.forked`: no collection of garbage looks at what it has loaded.

Else the first in each process copies the memory that all of them share.
"""

import gc

gc.freeze()
