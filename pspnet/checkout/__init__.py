"""The user's clone: adding data, comparing and exporting prepared sets, recipes, weights, `doctor`, `accept`.

Each module implements one command on files, git and DVC. May import everything except `cli`, `stages` and
`flows`. Start at `adding.py` (`pspnet data add`). Safe to change: messages, and checks that only read.
"""
