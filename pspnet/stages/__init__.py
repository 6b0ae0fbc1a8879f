"""One module per stage of dvc.yaml. A stage takes paths and parameters, and writes one directory.

May import everything except `cli`, `checkout`, `registry` and `serving`. Each module reads from top to bottom: open,
call, write. Start at `finetune.py`. Computation belongs in the rooms below.
"""
