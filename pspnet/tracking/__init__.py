"""Runs in MLflow: stages write records to the event log, and a separate process sends them.

May import `inspection` and everything below. Tracking never makes a stage fail or wait. Start at `journal.py`. Safe
to change: what a stage records, with the names in `naming.py`.
"""
