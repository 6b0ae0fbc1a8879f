"""When and where the stages of dvc.yaml run: Prefect's side of the pipeline."""
