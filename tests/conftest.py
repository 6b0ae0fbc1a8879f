import pytest
from hypothesis import settings

from pspnet.offline import go_offline

go_offline()
# The same examples in every run; the first may take its time, to load what the others have.
settings.register_profile("ours", derandomize=True, deadline=None)
settings.load_profile("ours")


@pytest.fixture(autouse=True)
def _no_tracking_server_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`connect` sets the address for the rest of the process, which is here that of many tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
