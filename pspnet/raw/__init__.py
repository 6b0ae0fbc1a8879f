"""Raw data -> checked samples: layouts, files, masks, classes, checks, duplicates, splits, the data report.

Reads a folder in any layout and builds the prepared set, in pieces that several machines can share. May import
`dataset` and the rooms below it. Start at `inventory.py` (which samples exist), `validation.py` (whether a sample is
fit for training) and `assembly.py` (which samples are used). A new layout is a module in `layouts/`, a line in its
`__init__.py` and its params in `config/dataset.py`. Any change here reruns `prepare`.
"""
