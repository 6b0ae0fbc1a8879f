"""Which MLflow this is, a client for it, and what is said when it is away."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from pspnet.credentials import hidden
from pspnet.errors import Busy, Problem, PspnetError, UserError, is_network
from pspnet.outputs import whole_file

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SQLITE = "sqlite:///"
IDENTITY = "pspnet.identity"  # tag of an experiment: by it one tracking server is told from another
MIGRATION_SECONDS = 120
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
IMPATIENT = {RETRIES: "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def tracking_uri(state: Path) -> str:
    """What MLFLOW_TRACKING_URI says; else a database of this checkout's own."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{(state / 'mlflow.db').resolve()}"


def connect(state: Path) -> "MlflowClient":
    """A client whose database exists; two processes that create one at the same time would break it."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    uri = tracking_uri(state)
    os.environ["MLFLOW_TRACKING_URI"] = uri  # for those parts of MLflow that ask the environment only
    from mlflow.tracking import MlflowClient

    with _one_at_a_time(state, uri):
        if uri.startswith(SQLITE) and not {"?", ":"} & {*uri.removeprefix(SQLITE)}:  # options, :memory:
            _make_database(Path(uri.removeprefix(SQLITE)))
        client = MlflowClient(uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _one_at_a_time(state: Path, uri: str) -> Iterator[None]:
    if uri.startswith("http"):  # the server has made its database before it listens
        yield
        return
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else state
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "mlflow.lock", timeout=MIGRATION_SECONDS):
            yield
    except filelock.Timeout:
        raise Busy(f"Another process has been preparing {hidden(uri)} for {MIGRATION_SECONDS} s.") from None


def _make_database(path: Path) -> None:
    """Under another name until it is whole: MLflow makes it in many steps, and goes on from none of them."""
    from mlflow.tracking import MlflowClient

    if path.exists() and path.stat().st_size:
        return
    for left in path.parent.glob(f"{path.name}.partial*"):  # with what SQLite would undo in it
        left.unlink()
    with whole_file(path) as partial:
        uri = f"{SQLITE}{partial}"
        MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)


def experiment(client: "MlflowClient", state: Path, name: str, tags: Mapping[str, str] | None = None) -> str:
    """The id of the experiment of this name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # The kind has MLflow's pages show trainings, not conversations.
        marked = {IDENTITY: uuid.uuid4().hex, "mlflow.experimentKind": "custom_model_development", **(tags or {})}
        try:
            return str(client.create_experiment(name, _artifacts(state), tags=marked))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def identity(client: "MlflowClient", experiment_id: str) -> str:
    """Of the experiment in this tracking server, in no other."""
    found = client.get_experiment(experiment_id).tags.get(IDENTITY)
    if found is None:  # it was not made here
        found = uuid.uuid4().hex
        client.set_experiment_tag(experiment_id, IDENTITY, found)
    return str(found)


def _artifacts(state: Path) -> str | None:
    """Beside a database in a file; where a server keeps them, that is its own matter."""
    uri = tracking_uri(state)
    if uri.startswith("http"):
        return None
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else state
    return (folder.resolve() / "mlartifacts").as_uri()


@contextmanager
def impatience() -> Iterator[None]:
    """MLflow itself would wait for minutes before it says that a server is away."""
    with _environment({name: os.environ.get(name, value) for name, value in IMPATIENT.items()}):
        yield


@contextmanager
def once() -> Iterator[None]:
    """MLflow's client would send a request again that was not answered in time, and of the two the first may come last.

    A database is asked once in any case.
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
def reached(state: Path) -> Iterator[None]:
    """What must not wait for minutes for a server that is away, and says so in one line if it is."""
    with impatience():
        try:
            yield
        except PspnetError:
            raise
        except Exception as error:
            problem = f"cannot be read ({reason(error)})"
            fix = "Set MLFLOW_TRACKING_URI to another, or unset it for a database of this checkout's own."
            where = hidden(tracking_uri(state))
            if is_network(error):
                raise Busy(f"{where}: {problem}. Try again when it is back.") from error
            raise UserError(Problem(where, problem, "an MLflow server or database", fix)) from error


def reason(error: BaseException) -> str:
    """In a few words: what the system said, if it is at the bottom of it, not the layers above."""
    found, cause = error, error
    while (cause := cause.__cause__ or cause.__context__) is not None:  # type: ignore[assignment]
        if isinstance(cause, OSError):
            found = cause
    text = (found.strerror if isinstance(found, OSError) else None) or str(found) or type(found).__name__
    return hidden(text.strip().splitlines()[0])[:200]
