"""From which seed the tests draw the moments at which they kill."""

import os

SEED = int(os.environ.get("PSPNET_KILL_SEED", "0"))
