"""The gate, and a person's word, from Prefect's pages: `pspnet promote` where the data are."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.attempts import attempt, done
from flows.registry import pspnet
from flows.stages import as_task
from flows.workplace import Workplace


@flow(name="promote", persist_result=False)
def promote(version: int | str | None = None, approve: bool = False, force: bool = False, why: str = "") -> State[Any]:
    """`version`: its number; else the challenger. A version that is held is promoted by `force` and a `why`."""
    given = [] if version is None else [str(version)]
    options = [*(["--approve"] if approve else []), *(["--force"] if force else []), *(["--why", why] if why else [])]

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        asked = as_task("promote", pspnet, retries=3)(workplace, environment, "promote", *given, *options)
        facts = done(asked)
        if facts["outcome"] in ("promoted", "is champion"):
            return Completed(message=facts["headline"])
        return Failed(message=f"{facts['headline']}. {(facts['decision'] or {}).get('summary', '')}")

    return attempt(work)
