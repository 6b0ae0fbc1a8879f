"""Runs in MLflow: stages write a journal, and a process alongside them sends it.

May import `inspection` and everything below. Tracking never fails a stage or makes it wait. Start at `journal.py`. Safe
to change: what a stage records, with the names in `naming.py`.
"""
