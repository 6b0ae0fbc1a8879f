"""Measuring: a predictor and images with masks -> a confusion matrix and a row per image -> the report and its page.

May import `prediction` and everything below. Start at `evaluating.py`. Safe to change: the page (`report.html.j2`) and
`panels.py`. An edit to `measuring.py` reruns fine-tuning, which measures val; any other edit reruns only
evaluate.
"""
