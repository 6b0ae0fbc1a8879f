"""Prefect's side of the pipeline: when and where the stages of dvc.yaml run."""
