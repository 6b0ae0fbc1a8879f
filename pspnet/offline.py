"""The one place where every dependency's telemetry, version check and greeting is switched off, and where each is
told to keep its files in this checkout.
"""

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
    """Call before the dependencies are imported; what a person has set stays. DVC run by hand reads .dvc/config."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def prefect_here(state: Path) -> None:
    """Prefect's own API, in processes of ours and a database of this checkout, unless a person names a server."""
    home = (state / "prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)  # else its database cannot be made
    here = {
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s  %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s  %(task_run_name)s: %(message)s",
    }
    for name, value in here.items():
        os.environ.setdefault(name, value)


def dvc_here(state: Path) -> None:
    """DVC unpickles its index of the checkout, which it keeps in /var/tmp unless told otherwise: any user could write
    there. So the index goes into the state folder, which nobody else may enter.
    """
    folder = state.resolve() / "dvc"
    with suppress(OSError):  # a checkout that cannot be written; DVC says so if it has to write
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state == STATE:  # else a person's, who may keep other things there
            private_folder(state)
        private_folder(folder)
    os.environ.setdefault("DVC_SITE_CACHE_DIR", str(folder))


def private_folder(path: Path) -> None:
    """A folder that only this user may enter. DVC makes folders in it that every user may write."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)


def dvc_by_hand(checkout: Path) -> None:
    """The same for `dvc` as a person calls it, by .dvc/config.local, which git ignores. What is set there stays."""
    from dvc.config import Config

    folder = checkout.resolve() / STATE / "dvc"
    private_folder(folder.parent)
    private_folder(folder)
    with Config(str(checkout / ".dvc")).edit("local") as local:
        local["core"].setdefault("site_cache_dir", str(folder))


if __name__ == "__main__":
    dvc_by_hand(Path.cwd())
