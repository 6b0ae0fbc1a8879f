"""The flow that runs `pspnet promote`, so that a version can be promoted from the Prefect UI, where the data is."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.flow_attempt import attempt, result_of
from flows.registry import registry_command
from flows.tasks import as_task
from flows.workplace import Workplace


@flow(name="promote", persist_result=False)
def promote(version: int | str | None = None, approve: bool = False, force: bool = False, why: str = "") -> State[Any]:
    """Promote a version.

    `version`: a version number, by default that of the challenger. `force`, with a reason in `why`: promote the version
    even if the gate holds it.
    """
    given = [] if version is None else [str(version)]
    options = [*(["--approve"] if approve else []), *(["--force"] if force else []), *(["--why", why] if why else [])]

    def work(workplace: Workplace, environment: dict[str, str]) -> State[Any]:
        state = as_task("promote", registry_command, retries=3)(workplace, environment, "promote", *given, *options)
        facts = result_of(state)
        if facts["outcome"] in ("promoted", "is champion"):
            return Completed(message=facts["headline"])
        return Failed(message=f"{facts['headline']}. {(facts['decision'] or {}).get('summary', '')}")

    return attempt(work)
