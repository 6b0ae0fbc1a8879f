"""The one place where every dependency's telemetry, version check and greeting is switched off."""

import os

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
