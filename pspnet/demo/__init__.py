"""Synthetic street scenes to try the pipeline on. May import `machine` and the rooms below it. Only `cli` imports
it.
"""
