"""`python -m flows.restore STAGE`: restores known results of a stage, and never runs the stage.

`dvc repro` would also run a stage that it cannot restore, but running the stage is another pool's job.
"""

import signal
import sys

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError

from flows.failure import NOT_KNOWN
from pspnet.errors import EXIT_TEMPORARY
from pspnet.machine.process import die_with_parent


def main() -> int:
    die_with_parent(signal.SIGTERM)
    with Repo(_wait_for_lock=True) as repo:
        try:
            if repo.config["core"].get("remote"):
                repo.stage_cache.pull(None)
            (stage,) = repo.stage.collect(sys.argv[1])
            with repo.lock:
                stage.repo.stage_cache.restore(stage, pull=bool(repo.config["core"].get("remote")))
        except RunCacheNotFoundError:
            return NOT_KNOWN
        except FileNotFoundError as error:  # `dvc gc` may have removed the file; the next attempt fetches it again
            print(f"ERROR: {error}", file=sys.stderr)  # noqa: T201
            return EXIT_TEMPORARY
        except DvcException as error:
            print(f"ERROR: {error}", file=sys.stderr)  # noqa: T201
            return 255
    return 0


if __name__ == "__main__":
    sys.exit(main())
