"""Trains, evaluates and promotes a PSPNet segmentation model.

Each folder is a room, and a room imports only from the rooms below it; `pyproject.toml` lists the rooms from top to
bottom under `[tool.importlinter]`. CONTRIBUTING.md follows the data and a parameter through the code.
"""
