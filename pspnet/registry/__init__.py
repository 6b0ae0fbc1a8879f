"""Versions of the model: how a bundle becomes a version, which version is champion, and why.

A bundle and its report come in (`registration`), the gate compares them with the champion (`gate`, pure), the audit
moves the alias (`audit`), and MLflow keeps every fact. May import `serving` and everything below it, but neither
`checkout` nor `stages`. Start at `gate.py` for the rules, at `audit.py` for what happens when processes die. Safe to
change: a rule of the gate together with its test, and printed output. Not safe: the order of the audit's writes;
`python -m tests.registry.interleavings` runs two or three processes through it in every order.
"""
