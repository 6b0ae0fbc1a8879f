"""How often the tests kill, and from which seed the moments are drawn."""

import os

SHARE = float(os.environ.get("PSPNET_KILLS", "1"))  # of all the kills: 0.25 for a quick look
SEED = int(os.environ.get("PSPNET_KILL_SEED", "0"))


def share_of(times: int) -> int:
    return max(1, round(times * SHARE))
