"""Training in plain torch: one loop per task, and the code that the two loops share.

Batches go in and weights come out. A killed run resumes and ends with the same weights. May import `evaluation` and
everything below, but not MLflow, Prefect or DVC. Start at `finetune.py`, which reads from top to bottom. Any change
here reruns training.
"""
