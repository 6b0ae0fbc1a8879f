"""The one place where every dependency's telemetry, version check and greeting is switched off."""

import os
from pathlib import Path

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
