from pspnet.registry.packaging import settings
from tests.parameters import demo_params


def test_a_version_serves_in_the_precision_it_was_measured_with() -> None:
    assert settings(demo_params(runtime__precision="bf16"))["precision"] == "bf16"
