"""The Prefect side of the pipeline, which decides when and where the stages of dvc.yaml run.

Flows start commands and read the commands' event logs. What commands print goes to the run's log unparsed.
"""
