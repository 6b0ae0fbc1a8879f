"""The seed with which tests choose the moments of their kills."""

import os


def kill_seed() -> int:
    return int(os.environ.get("PSPNET_KILL_SEED", "0"))
