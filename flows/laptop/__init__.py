"""The flows on one machine: `pspnet retrain` in this process, `pspnet schedule` with its own Prefect server."""
