"""Our server: first what stands before MLflow's app, over a small app of the test; then a process over a version."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pspnet.serving import server as module
from pspnet.serving.server import Bounded, Message, Receive, Scope, Send
from tests.dataset.rawdata import encoded, noise
from tests.serving.processes import (
    SERVER,
    URL,
    Response,
    asked,
    get,
    png_of_zeros,
    port_told,
    post,
    predicted,
    process,
    server,
    split,
)

GOOD = json.dumps(split("aGk=")).encode()
JSON = [(b"content-type", b"application/json; charset=utf-8")]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


class Client:
    """One connection: what it sends, in parts, and what comes back. It hangs up when `parts` end early."""

    def __init__(self, *parts: bytes, headers: list[tuple[bytes, bytes]] = JSON, complete: bool = True) -> None:
        self.scope: Scope = {"type": "http", "method": "POST", "path": URL, "headers": headers}
        last = len(parts) - 1
        self._messages: list[Message] = [
            {"type": "http.request", "body": part, "more_body": n < last or not complete}
            for n, part in enumerate(parts)
        ]
        self.waits = asyncio.Event()  # for more than it has sent, or for its answer
        self.leave = asyncio.Event()
        self.answer: list[Message] = []

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        self.waits.set()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answer.append(message)

    async def ask(self, app: Bounded) -> "Client":
        await asyncio.wait_for(app(self.scope, self.receive, self.send), 20)
        return self

    @property
    def response(self) -> Response:
        start, body = self.answer
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Response(start["status"], headers, body["body"].decode())


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 30)

    asyncio.run(limited())


def test_a_request_reaches_the_app_whole_and_its_answer_the_client() -> None:
    async def test() -> None:
        client = await Client(GOOD[:5], GOOD[5:9], GOOD[9:]).ask(Bounded(echo, 1000, 1, 1))
        assert client.response.content == json.loads(GOOD)
        assert client.response.headers["content-length"] == str(len(GOOD))

    run(test)


@pytest.mark.parametrize(
    "client",
    [
        lambda: Client(b"x" * 400, b"x" * 400, b"x" * 400),
        lambda: Client(GOOD, headers=[*JSON, (b"content-length", b"1001")]),
        lambda: Client(headers=[*JSON, (b"content-length", b"1001"), (b"expect", b"100-continue")]),
    ],
    ids=["streamed", "declared", "not yet sent"],
)
def test_a_body_over_the_limit_is_413(client: Callable[[], Client]) -> None:
    async def test() -> None:
        response = (await client().ask(Bounded(echo, 1000, 1, 1))).response
        assert response.status == 413
        assert response.content == {
            "error_code": "REQUEST_TOO_LARGE",
            "message": "The request has more than 0.0 MB. Send fewer images at once, or smaller ones.",
        }

    run(test)


def test_a_body_that_never_ends_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)

    async def test() -> None:
        client = await Client(GOOD, complete=False).ask(Bounded(echo, 1000, 1, 1))
        assert (client.response.status, client.response.message) == (408, "The request took longer than 0.2 s.")

    run(test)


def test_more_requests_than_may_wait_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.2)

    async def test() -> None:
        app = Bounded(echo, 1000, waiting=1, working=1)
        slow = [Client(GOOD, complete=False) for _ in range(2)]
        held = [asyncio.ensure_future(client.ask(app)) for client in slow]
        await asyncio.gather(*(client.waits.wait() for client in slow))
        busy = (await Client(GOOD).ask(app)).response
        assert busy.status == 503
        assert busy.headers["retry-after"] == "1"
        assert busy.content == {
            "error_code": "TEMPORARILY_UNAVAILABLE",
            "message": "The server is busy. Try again in a moment.",
        }
        for client in slow:
            client.leave.set()
        await asyncio.gather(*held)
        assert [client.answer for client in slow] == [[], []]
        assert (await Client(GOOD).ask(app)).response.status == 200

    run(test)


def test_bodies_held_at_once_are_four_of_the_largest_at_most() -> None:
    async def test() -> None:
        app = Bounded(echo, 1000, waiting=100, working=1)
        large = [*JSON, (b"content-length", b"1000")]
        slow = [Client(b" " * 10, headers=large, complete=False) for _ in range(4)]
        held = [asyncio.ensure_future(client.ask(app)) for client in slow]
        await asyncio.gather(*(client.waits.wait() for client in slow))
        assert (await Client(GOOD, headers=[*JSON, (b"content-length", b"1")]).ask(app)).response.status == 503
        slow[0].leave.set()
        await held[0]
        assert (await Client(GOOD, headers=[*JSON, (b"content-length", b"1")]).ask(app)).response.status == 200
        for client in slow:
            client.leave.set()
        await asyncio.gather(*held)

    run(test)


def test_the_request_of_a_client_that_has_left_is_not_worked_on() -> None:
    async def test() -> None:
        begun, ended = asyncio.Event(), []

        async def endless(scope: Scope, receive: Receive, send: Send) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        client = Client(GOOD)
        asked = asyncio.ensure_future(client.ask(Bounded(endless, 1000, 1, 1)))
        await begun.wait()
        client.leave.set()
        await asked
        await asyncio.sleep(0)
        assert ended == ["cancelled"]
        assert client.answer == []

    run(test)


def test_a_failure_is_500_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret")

    async def test() -> None:
        client = await Client(GOOD).ask(Bounded(failing, 1000, 1, 1))
        assert client.response.status == 500
        assert client.response.content == {
            "error_code": "INTERNAL_ERROR",
            "message": "The server failed; its log says why.",
        }

    run(test)
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"message": "too bad", "stack_trace": "Traceback"}, "too bad"),
        ({"message": f"Failed to predict data '{'A' * 100}'. \nError: too bad"}, "too bad"),
        ({"message": "Failed to predict data '1'. \nError: Failed to enforce schema of '2'. Error: bad"}, "bad"),
        ({"message": "a" * 1_000_000}, "a" * 20_000),
    ],
    ids=["traceback", "repeated request", "both", "endless"],
)
def test_an_error_of_the_app_is_told_in_short(told: dict[str, str], message: str) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": json.dumps({"error_code": "BAD_REQUEST", **told}).encode()})

    async def test() -> None:
        client = await Client(GOOD).ask(Bounded(failing, 1000, 1, 1))
        assert client.response.status == 400
        assert client.response.content == {"error_code": "BAD_REQUEST", "message": message}
        assert client.response.headers["content-type"] == "application/json"

    run(test)


EXPECTED = 'for example {"dataframe_split": {"columns": ["image"], "data": [["..."]]}}.'
ONE_OF = "expected exactly one of dataframe_split, dataframe_records, inputs, instances, "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The request is not valid JSON (Expecting value: line 1 column 1 (char 0))."),
        (b"{} {}", "The request is not valid JSON (Extra data: line 1 column 4 (char 3))."),
        (b'["a"]', f"The request is JSON, but no object; expected one, {EXPECTED}"),
        (b'{"image": "a"}', f"The request has the keys 'image'; {ONE_OF}{EXPECTED}"),
        (b"{}", f"The request has the keys none; {ONE_OF}{EXPECTED}"),
        (b'{"inputs": 1, "instances": 2}', f"The request has the keys 'inputs', 'instances'; {ONE_OF}{EXPECTED}"),
        (b"[" * 20_000, "The request holds some 20,001 values; expected at most 10,000."),
        (
            json.dumps({"inputs": ["A" * 20_000, *["A"] * 10]}).encode(),
            f"inputs of very different lengths cost too much memory; expected dataframe_split, {EXPECTED}",
        ),
    ],
    ids=["empty", "extra", "list", "key", "no key", "two keys", "values", "lengths"],
)
def test_a_request_that_would_cost_much_or_say_nothing_is_400(body: bytes, message: str) -> None:
    async def test() -> None:
        response = (await Client(body).ask(Bounded(echo, 100_000, 1, 1))).response
        assert (response.status, response.message) == (400, message)

    run(test)


def test_deep_json_is_no_crash() -> None:
    async def test() -> None:
        response = (await Client(b"[" * 9_000 + b"]" * 9_000).ask(Bounded(echo, 100_000, 1, 1))).response
        assert response.status == 400

    run(test)


@pytest.mark.parametrize("kind", ["text/csv", "application/vnd.apache.parquet", "missing"])
def test_only_json_is_understood(kind: str) -> None:
    """A small Parquet file can become gigabytes when it is read."""

    async def test() -> None:
        headers = [] if kind == "missing" else [(b"content-type", kind.encode())]
        response = (await Client(GOOD, headers=headers).ask(Bounded(echo, 1000, 1, 1))).response
        message = f"content-type is {kind}; expected application/json."
        assert (response.status, response.message) == (415, message)

    run(test)


@pytest.fixture(scope="session")
def port(
    version: Path, newer_checkout: Path, warm_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """One server for all tests that leave it running."""
    folder, options = tmp_path_factory.mktemp("server"), ("--max-body-mb", "2", "--working", "1", "--waiting", "0")
    with server(warm_python, version, folder, *options, PYTHONPATH=str(newer_checkout)) as (_, port):
        assert (folder / "log").read_text() == f"models:/x/3 on http://127.0.0.1:{port}, Ctrl-C stops it\n"
        yield port


@pytest.mark.e2e
def test_good_images_are_answered_with_the_versions_own_masks(port: int, bundle: Path) -> None:
    images = [noise(30, 50), noise(64, 48, seed=1)]
    response = post(port, split(*map(encoded, images)))
    for row, image in enumerate(images):
        assert np.array_equal(response.mask(row), predicted(bundle, image))


@pytest.mark.e2e
def test_each_bad_image_is_named(port: int) -> None:
    refused = post(port, split(encoded(noise(30, 50)), "", png_of_zeros(50_000, 50_000, data=b"\0"), None))
    assert refused.status == 400
    assert [line.split(";")[0] for line in refused.message.splitlines()] == [
        "3 problems:",
        "  image 2: is empty (0 bytes)",
        "  image 3: has 2,500.0 megapixels",
        "  image 4: is null",
    ]


@pytest.mark.e2e
def test_a_wrong_column_is_named(port: int) -> None:
    refused = post(port, {"dataframe_split": {"columns": ["picture"], "data": [["a"]]}})
    assert (refused.status, refused.message) == (
        400,
        "Model is missing inputs ['image']. Note that there were extra inputs: ['picture'].",
    )


@pytest.mark.e2e
@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_sends_too_much_is_told_so(port: int, streamed: bool) -> None:
    body = (b"A" * 100_000 for _ in range(60)) if streamed else b"A" * 6_000_000
    refused = post(port, body)
    assert (refused.status, refused.content["error_code"]) == (413, "REQUEST_TOO_LARGE")
    assert refused.message == "The request has more than 2.0 MB. Send fewer images at once, or smaller ones."
    assert post(port, split(encoded(noise(8, 8)))).status == 200


@pytest.mark.e2e
def test_the_other_addresses_of_mlflow_are_there(port: int) -> None:
    assert (get(port, "/ping").status, get(port, "/health").status) == (200, 200)
    assert get(port, "/version").text.count(".") == 2
    assert (get(port, "/nothing").status, get(port, URL).status) == (404, 405)


@pytest.mark.e2e
def test_a_busy_server_says_so_and_then_answers(port: int) -> None:
    body = json.dumps(split(encoded(noise(30, 50)))).encode()
    with begun(port, len(body)) as slow:
        busy = post(port, split(encoded(noise(8, 8))))
        assert busy.status == 503
        assert busy.headers["retry-after"] == "1"
        assert busy.content == {
            "error_code": "TEMPORARILY_UNAVAILABLE",
            "message": "The server is busy. Try again in a moment.",
        }
        assert get(port, "/ping").status == 200
        slow.sendall(body)
        response = http.client.HTTPResponse(slow)
        response.begin()
        assert response.status == 200
    assert post(port, split(encoded(noise(30, 50)))).status == 200


@contextlib.contextmanager
def begun(port: int, length: int) -> Iterator[socket.socket]:
    """A request that the server has taken on; it waits for so many bytes."""
    kind = "content-type: application/json\r\nexpect: 100-continue"
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        client.sendall(f"POST {URL} HTTP/1.1\r\nhost: here\r\n{kind}\r\ncontent-length: {length}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 100")
        yield client


HURRIED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("server", sys.argv[1])
server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(server)
server.STOP_SECONDS = 1
del sys.argv[1]
server.main()
"""


@pytest.mark.e2e
def test_a_stop_does_not_wait_for_a_long_prediction(version: Path, warm_python: str, tmp_path: Path) -> None:
    options = "--working", "1", "--waiting", "0"
    with process([warm_python, "-P", "-c", HURRIED, SERVER, *asked(version), *options], tmp_path) as started:
        port = port_told(started, tmp_path)
        body = json.dumps(split(*[png_of_zeros(4000, 5000)] * 16)).encode()
        with begun(port, len(body)) as client:
            client.sendall(body)
            assert post(port, split(encoded(noise(8, 8)))).status == 503  # it is being worked on
            started.send_signal(signal.SIGINT)
            assert started.wait(120) == 0
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in client.recv(1000)


@pytest.mark.e2e
def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(
    port: int, version: Path, warm_python: str, tmp_path: Path
) -> None:
    taken = server(warm_python, version, tmp_path, "--port", str(port))
    with pytest.raises(AssertionError) as error, taken:
        pass
    told = f"127.0.0.1:{port}: cannot be listened on (Address already in use). Give another --port or --host."
    assert told in str(error.value)


@pytest.mark.e2e
def test_a_model_that_cannot_be_loaded_is_told(warm_python: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as error, server(warm_python, tmp_path / "nowhere", tmp_path):
        pass
    assert "models:/x/3: the model cannot be loaded: " in str(error.value)
