"""Evaluates a predictor on images with masks: a confusion matrix and a row per image, then the report and its page.

May import `prediction` and everything below. Start at `evaluating.py`. Safe to change: the page (`report.html.j2`) and
`panels.py`. An edit to `measuring.py` makes DVC rerun fine-tuning, which evaluates on the validation split. An edit to
`pages` or `pretraining` makes DVC rerun `pretrain`, which keeps its checkpoint and only writes its page again. Any
other edit makes DVC rerun only the evaluate stage.
"""
