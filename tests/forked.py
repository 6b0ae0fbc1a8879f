"""Second processes of a test, forked from a server that has loaded torch, MLflow and the tests' own targets.

A fresh interpreter takes seconds for that. Each of pytest's processes has one such server: the list is for all rooms.
"""

import multiprocessing

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "pytest", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "tests.registry.mover",
        "tests.tracking.killer",
        "torch", "torch._dynamo", "torch.distributed", "pspnet.cli", "pspnet.stages.finetune", "pspnet.stages.pretrain",
        "tests.training.killed", "tests.training.peers", "tests.training.commands", "tests.frozen",
    ]
)  # fmt: skip
