"""Turn off telemetry, version checks and greetings in all dependencies, and keep their files in this checkout."""

import os
from contextlib import suppress
from pathlib import Path

STATE = Path(".pspnet")

SWITCHES = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def go_offline() -> None:
    """Set all switches that the user has not set. Call this before importing the dependencies.

    If DVC is run by hand, it reads .dvc/config instead.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def configure_prefect(state: Path) -> None:
    """Have Prefect keep its database in this checkout. The user's own settings are not changed."""
    home = (state / "prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)  # otherwise Prefect cannot create its database
    here = {
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s  %(task_run_name)s: %(message)s",
    }
    for name, value in here.items():
        os.environ.setdefault(name, value)


def configure_dvc(state: Path) -> None:
    """Have DVC keep its index of the checkout in the state folder, which no other user can enter.

    DVC unpickles the index, and keeps it by default in /var/tmp, where any user can write.
    """
    folder = state.resolve() / "dvc"
    with suppress(OSError):  # a read-only checkout, which DVC reports if it needs to write
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state == STATE:  # a folder chosen by the user may contain other things, so its mode is left alone
            private_folder(state)
        private_folder(folder)
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(folder))


def private_folder(path: Path) -> None:
    """Create a folder that only this user can enter. DVC creates world-writable folders in it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)


def configure_dvc_by_hand(checkout: Path) -> None:
    """Do the same for `dvc` run by hand, in .dvc/config.local, which git ignores. A folder that is already set there is
    kept.
    """
    from dvc.config import Config

    folder = checkout.resolve() / STATE / "dvc"
    private_folder(folder.parent)
    private_folder(folder)
    with Config(str(checkout / ".dvc")).edit("local") as local:
        local["core"].setdefault("site_cache_dir", str(folder))


if __name__ == "__main__":
    configure_dvc_by_hand(Path.cwd())
