"""A Prefect flow that does nothing, with the database of `pspnet retrain`: what Prefect costs by itself."""

from pathlib import Path

from pspnet.offline import go_offline, prefect_here

go_offline()
prefect_here(Path(".pspnet"))

from prefect import flow  # noqa: E402  after its settings


@flow
def empty() -> None:
    """Nothing."""


if __name__ == "__main__":
    empty()
