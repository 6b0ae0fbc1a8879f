"""Imported last by the server of `tests.forked`, so that garbage collection skips every module loaded earlier.

Otherwise, the first collection in each process would copy the memory that they all share.
"""

import gc

gc.freeze()
