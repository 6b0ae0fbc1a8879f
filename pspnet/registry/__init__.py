"""Versions of the model, who became champion and why: kept in MLflow."""
