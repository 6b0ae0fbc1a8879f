"""Runs in MLflow: stages record themselves in the event log, and a process alongside them sends the records.

May import `inspection` and everything below. Tracking never fails a stage or makes it wait. Start at `journal.py`. Safe
to change: what a stage records, with the names in `naming.py`.
"""
