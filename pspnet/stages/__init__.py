"""One module per stage of dvc.yaml: paths and parameters in, one directory out.

May import everything except `cli`, `checkout`, `registry` and `serving`. Each reads from top to bottom: open, call,
write. Start at `finetune.py`. Computation belongs in the rooms below.
"""
