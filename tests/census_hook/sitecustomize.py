"""Logs the start of each Python process of a counted test and the heavy packages that it imports."""

import json
import os
import sys

if log := os.environ.get("PSPNET_CENSUS"):
    HEAVY = {"torch", "mlflow", "prefect"}

    def note(loaded: str | None = None, log: str = log) -> None:
        line = json.dumps({"test": os.environ.get("PYTEST_CURRENT_TEST", ""), "process": os.getpid(), "loaded": loaded})
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, (line + "\n").encode())
        os.close(descriptor)

    class Watch:
        """A finder that never finds a module. Python asks it first for each module that is not loaded yet."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name in HEAVY:
                HEAVY.discard(name)
                note(name)

    note()
    sys.meta_path.insert(0, Watch())
    os.register_at_fork(after_in_child=note)
