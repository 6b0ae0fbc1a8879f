import pytest

from pspnet.offline import go_offline

go_offline()


@pytest.fixture(autouse=True)
def _no_tracking_server_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` sets the address for the rest of the process, which is here that of many tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
