"""The `pspnet` command as a person runs it: a process of its own, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

PSPNET = str(Path(sys.executable).with_name("pspnet"))


def pspnet(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PSPNET, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PSPNET_TRACKING": "off", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
