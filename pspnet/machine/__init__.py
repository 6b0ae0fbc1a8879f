"""Processes, locks, whole-file outputs, worktrees, the event log, the terminal, and switches for other libraries.

May import `errors`, `metrics` and `printable`. Start at `outputs.py` and `process.py`. No result depends on this room,
so a change here does not rerun any stage. Code that computes results does not belong here.
"""
