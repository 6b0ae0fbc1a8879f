"""Commands on the user's clone: add data, compare and export prepared sets, recipes, weights, `doctor`, `accept`.

Each module implements one command that works on files, git and DVC. May import everything except `cli`, `stages` and
`flows`. Start at `adding.py` (`pspnet data add`). Safe to change: messages, and checks that only read.
"""
