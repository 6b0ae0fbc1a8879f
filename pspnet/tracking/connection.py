"""The address of MLflow, a client for it, and the messages shown when it is down."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from pspnet.errors import Busy, Problem, PspnetError, UserError, is_network
from pspnet.machine.credentials import hidden
from pspnet.machine.outputs import whole_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"
IDENTITY = "pspnet.identity"  # experiment tag that distinguishes tracking servers
MIGRATION_SECONDS = 120
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
SHORT_TIMEOUTS = {RETRIES: "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def tracking_uri(state: Path) -> str:
    """The value of MLFLOW_TRACKING_URI, or the address of this checkout's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{(state / 'mlflow.db').resolve()}"


def connect(state: Path) -> "MlflowClient":
    """An MLflow client. If there is no database yet, it is created first.

    Only one process at a time may create the database, because two would break it.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    uri = tracking_uri(state)
    os.environ["MLFLOW_TRACKING_URI"] = uri  # some parts of MLflow read only the environment
    from mlflow.tracking import MlflowClient

    with _one_at_a_time(state, uri):
        if uri.startswith(SQLITE) and not {"?", ":"} & {*uri.removeprefix(SQLITE)}:  # options, :memory:
            _make_database(Path(uri.removeprefix(SQLITE)))
        client = MlflowClient(uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _one_at_a_time(state: Path, uri: str) -> Iterator[None]:
    if uri.startswith("http"):  # a server creates its database before it listens
        yield
        return
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else state
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "mlflow.lock", timeout=MIGRATION_SECONDS):
            yield
    except filelock.Timeout:
        raise Busy(f"Another process has been preparing {hidden(uri)} for over {MIGRATION_SECONDS} s.") from None


def _make_database(path: Path) -> None:
    """Create the database, at first under another name: MLflow needs many steps, and cannot resume if interrupted."""
    from mlflow.tracking import MlflowClient

    if path.exists() and path.stat().st_size:
        return
    for left in path.parent.glob(f"{path.name}.partial*"):  # including SQLite's rollback journal
        left.unlink()
    with whole_file(path) as partial:
        uri = f"{SQLITE}{partial}"
        MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)


def experiment(client: "MlflowClient", state: Path, name: str, tags: Mapping[str, str] | None = None) -> str:
    """The id of the experiment with this name. If necessary, the experiment is created."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # With this kind, the MLflow UI shows training runs instead of conversations.
        marked = {IDENTITY: uuid.uuid4().hex, "mlflow.experimentKind": "custom_model_development", **(tags or {})}
        try:
            return str(client.create_experiment(name, _artifacts(state), tags=marked))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process has created it in the meantime
            if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def server_identity(client: "MlflowClient", experiment_id: str) -> str:
    """A value that identifies the tracking server: a tag of the experiment. If necessary, the tag is created."""
    found = client.get_experiment(experiment_id).tags.get(IDENTITY)
    if found is None:  # we did not create the experiment
        found = uuid.uuid4().hex
        client.set_experiment_tag(experiment_id, IDENTITY, found)
    return str(found)


def _artifacts(state: Path) -> str | None:
    """Where to store artifacts: next to a local database. None for a server, which decides for itself."""
    uri = tracking_uri(state)
    if uri.startswith("http"):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else state
    return (folder.resolve() / "mlartifacts").as_uri()


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Make requests inside the block fail quickly. By default, MLflow waits for minutes if a server is down."""
    with _environment({name: os.environ.get(name, value) for name, value in SHORT_TIMEOUTS.items()}):
        yield


@contextmanager
def without_retries() -> Iterator[None]:
    """Make MLflow's client send each request inside the block only once.

    By default, it repeats a request that is not answered in time, and the first of the two requests could arrive last.
    Requests to a local database are never repeated.
    """
    with _environment({RETRIES: "0"}):
        yield


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def fail_fast(state: Path) -> Iterator[None]:
    """Turn errors inside the block into ours: Busy if a server is down, else a one-line UserError. Fails quickly."""
    with short_timeouts():
        try:
            yield
        except PspnetError:
            raise
        except Exception as error:
            problem = f"cannot be read ({reason(error)})"
            fix = "Set MLFLOW_TRACKING_URI to another address, or unset it to use this checkout's own database."
            where = hidden(tracking_uri(state))
            if is_network(error):
                raise Busy(f"{where}: {problem}. Try again when it is back.") from error
            raise UserError(Problem(where, problem, "an MLflow server or database", fix)) from error


def reason(error: BaseException) -> str:
    """The error in one line: the message of the system error that caused it, or else its own first line."""
    found, cause = error, error
    while (cause := cause.__cause__ or cause.__context__) is not None:  # type: ignore[assignment]
        if isinstance(cause, OSError):
            found = cause
    text = (found.strerror if isinstance(found, OSError) else None) or str(found) or type(found).__name__
    return hidden(text.strip().splitlines()[0])[:200]
