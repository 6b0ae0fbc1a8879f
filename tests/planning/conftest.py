from tests.training.conftest import _no_loader_processes, prepared

__all__ = ["_no_loader_processes", "prepared"]
