"""Plain torch: one loop per task, and the code the two loops share.

Batches go in, weights come out; a killed run resumes and ends with the same weights. May import `evaluation` and
everything below, but not MLflow, Prefect or DVC. Start at `finetune.py`, which reads from top to bottom. Any change
here reruns training.
"""
