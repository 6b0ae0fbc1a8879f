"""Keeps a PSPNet segmentation model trained, measured and promoted.

Each folder is a room, and a room imports only from the rooms below it; `pyproject.toml` lists them from top to
bottom under `[tool.importlinter]`. CONTRIBUTING.md follows the data and a parameter through the code.
"""
