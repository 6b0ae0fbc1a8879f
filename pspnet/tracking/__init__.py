"""Runs in MLflow: stages tell a journal what they do, and a process beside them sends it."""
