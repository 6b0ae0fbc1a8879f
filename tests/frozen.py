"""Imported last by the server of `tests.forked`, so that no garbage collection scans the modules loaded before.

Otherwise the first collection in each process would copy the memory that all of them share.
"""

import gc

gc.freeze()
