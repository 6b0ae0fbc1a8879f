"""Forks test processes from a server that has loaded torch, MLflow and the functions that the tests run.

A new interpreter takes seconds to load them. Each pytest process has one such server, so the list includes functions
from all test packages.
"""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "pytest", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "tests.registry.mover",
        "tests.tracking.killer",
        "torch", "torch._dynamo", "torch.distributed", "pspnet.cli", "pspnet.stages.finetune", "pspnet.stages.pretrain",
        "tests.training.killed", "tests.training.peers", "tests.training.pretrain_peers", "tests.training.commands",
        "tests.study.workers",
        "tests.frozen",
    ]
)  # fmt: skip
