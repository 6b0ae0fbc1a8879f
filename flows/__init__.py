"""The Prefect side of the pipeline: when and where the stages of dvc.yaml run.

Flows start commands and read their event logs; printed text goes to the log unparsed.
"""
