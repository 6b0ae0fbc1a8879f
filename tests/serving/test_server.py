"""Tests of the server: first its limits, with a small app behind it, then a whole process that serves a version."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import uvicorn

from pspnet.serving import server as module
from pspnet.serving.server import App, Bounded, Message, Receive, Scope, Send, given_up
from tests.raw.rawdata import encoded, noise
from tests.serving.processes import (
    SERVER,
    URL,
    Response,
    get,
    options_for,
    png_of_zeros,
    port_of,
    post,
    predicted,
    process,
    server,
    split,
)
from tests.waiting import wait_until

GOOD = json.dumps(split("aGk=")).encode()
JSON = [(b"content-type", b"application/json; charset=utf-8")]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


class Client:
    """A connection, with the parts that it sends and the answer that it gets. If not `complete`, it never sends the
    rest.
    """

    def __init__(
        self,
        *parts: bytes,
        headers: list[tuple[bytes, bytes]] = JSON,
        complete: bool = True,
        method: str = "POST",
        address: str = URL,
        host: str = "127.0.0.1",
    ) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": unquote(address),
            "raw_path": address.encode(),
            "headers": headers,
            "client": (host, 1234),
        }
        last = len(parts) - 1
        self._messages: list[Message] = [
            {"type": "http.request", "body": part, "more_body": n < last or not complete}
            for n, part in enumerate(parts)
        ]
        self.waits = asyncio.Event()  # set once all parts have been sent
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


def test_a_request_and_its_answer_pass_through_unchanged() -> None:
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
def test_a_body_over_the_limit_gets_413(client: Callable[[], Client]) -> None:
    async def test() -> None:
        response = (await client().ask(Bounded(echo, 1000, 1, 1))).response
        assert response.status == 413
        assert response.content == {
            "error_code": "REQUEST_TOO_LARGE",
            "message": "The request is larger than 0.0 MB. Send fewer or smaller images.",
        }

    run(test)


def test_a_body_that_never_ends_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)

    async def test() -> None:
        client = await Client(GOOD, complete=False).ask(Bounded(echo, 1000, 1, 1))
        assert (client.response.status, client.response.message) == (
            408,
            "Only 0.1 kB arrived in 0 s; expected 16 kB every 10 s and all of it within 0.2 s.",
        )

    run(test)


def test_a_body_that_arrives_too_slowly_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.2)
    monkeypatch.setattr(module, "PROGRESS_BYTES", 100)

    class Slow(Client):
        async def receive(self) -> Message:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b" ", "more_body": True}

    async def test() -> None:
        assert (await Slow().ask(Bounded(echo, 1000, 1, 1))).response.status == 408

    run(test)


def test_requests_beyond_those_allowed_to_wait_get_503() -> None:
    async def test() -> None:
        goes_on = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await goes_on.wait()
            await echo(scope, receive, send)

        app = Bounded(slow, 1000, waiting=1, working=1)
        clients = [Client(GOOD) for _ in range(2)]
        held = [asyncio.ensure_future(client.ask(app)) for client in clients]
        await asyncio.gather(*(client.waits.wait() for client in clients))
        busy = (await Client(GOOD).ask(app)).response
        assert busy.status == 503
        assert busy.headers["retry-after"] == "1"
        assert busy.content == {
            "error_code": "TEMPORARILY_UNAVAILABLE",
            "message": "The server is busy. Try again in a moment.",
        }
        goes_on.set()
        await asyncio.gather(*held)
        assert [client.response.status for client in clients] == [200, 200]
        assert (await Client(GOOD).ask(app)).response.status == 200

    run(test)


def declared(size: int) -> list[tuple[bytes, bytes]]:
    return [*JSON, (b"content-length", str(size).encode())]


async def begun(app: Bounded, clients: list[Client]) -> list["asyncio.Future[Client]"]:
    """Start the clients' requests. Each client has sent all its parts before the next client starts."""
    asked: list[asyncio.Future[Client]] = []
    for client in clients:
        asked.append(asyncio.ensure_future(client.ask(app)))
        await client.waits.wait()
    return asked


async def left(clients: list[Client], asked: list["asyncio.Future[Client]"]) -> None:
    for client in clients:
        client.leave.set()
    await asyncio.gather(*asked)


@pytest.mark.parametrize("size", [1, 1000])
def test_all_bodies_together_take_at_most_four_times_the_largest(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The declared size does not matter: `Content-Length: 1` means nothing for a body in chunks."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.1)

    async def test() -> None:
        app = Bounded(echo, 1000, waiting=100, working=1)
        slow = [Client(b" " * 1000, headers=declared(size), complete=False) for _ in range(5)]
        asked = await begun(app, slow)
        [refused], _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result().response.status == 503
        await left(slow, asked)
        assert [bool(client.answer) for client in slow] == [True, False, False, False, False]
        assert (await Client(GOOD).ask(app)).response.status == 200

    run(test)


def test_clients_that_declare_much_and_send_one_byte_take_no_room() -> None:
    async def test() -> None:
        app = Bounded(echo, 1000, waiting=1, working=1)
        slow = [Client(b" ", headers=declared(1000), complete=False) for _ in range(20)]
        asked = await begun(app, slow)
        assert (await Client(GOOD).ask(app)).response.status == 200
        await left(slow, asked)

    run(test)


def test_the_client_that_holds_most_loses_its_most_stalled_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.1)

    async def test() -> None:
        app = Bounded(echo, 1000, waiting=100, working=1)
        modest = Client(b" " * 900, complete=False, host="10.0.0.1")
        greedy = [Client(b" " * 800, complete=False, host="10.0.0.2") for _ in range(3)]
        asked = await begun(app, [modest, *greedy])
        response = (await Client(b" " * 900, GOOD, host="10.0.0.3").ask(app)).response
        assert response.status == 200
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        await left([modest, *greedy], asked)
        assert [bool(client.answer) for client in [modest, *greedy]] == [False, True, False, False]
        assert greedy[0].response.status == 503

    run(test)


def test_the_clients_take_turns_and_one_with_many_requests_makes_room() -> None:
    async def test() -> None:
        goes_on, worked_on = asyncio.Event(), []

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            worked_on.append(scope["client"][0])
            await goes_on.wait()
            await echo(scope, receive, send)

        app = Bounded(slow, 1000, waiting=4, working=1)
        clients = [Client(GOOD, host=f"10.0.0.{host}") for host in (0, 0, 0, 0, 0, 1, 2)]
        asked = await begun(app, clients)
        goes_on.set()
        await asyncio.gather(*asked)
        assert [client.response.status for client in clients] == [200, 200, 200, 503, 503, 200, 200]
        assert worked_on == [f"10.0.0.{number}" for number in (0, 0, 1, 2, 0)]

    run(test)


def test_a_waiting_request_is_dropped_when_its_client_leaves() -> None:
    async def test() -> None:
        goes_on, worked_on = asyncio.Event(), []

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            worked_on.append(scope["client"])
            await goes_on.wait()
            await echo(scope, receive, send)

        app = Bounded(slow, 1000, waiting=2, working=1)
        clients = [Client(GOOD, host=f"10.0.0.{number}") for number in range(3)]
        asked = await begun(app, clients)
        clients[1].leave.set()
        await asked[1]
        assert clients[1].answer == []
        goes_on.set()
        await asyncio.gather(*asked)
        assert worked_on == [("10.0.0.0", 1234), ("10.0.0.2", 1234)]

    run(test)


def test_work_for_a_client_that_left_is_asked_to_stop_and_keeps_its_slot_until_it_ends() -> None:
    async def test() -> None:
        loop, threads = asyncio.get_running_loop(), threading.Semaphore(0)
        told: asyncio.Future[bool] = loop.create_future()

        def work() -> None:
            wait_until(given_up, 20)
            loop.call_soon_threadsafe(told.set_result, True)
            threads.acquire(timeout=20)

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["client"][0] == "10.0.0.1":
                await asyncio.to_thread(work)
            await echo(scope, receive, send)

        app = Bounded(slow, 1000, waiting=0, working=1)
        client = Client(GOOD, host="10.0.0.1")
        asked = await begun(app, [client])
        client.leave.set()
        await told
        assert (await Client(GOOD).ask(app)).response.status == 503
        threads.release()
        await asyncio.gather(*asked)
        assert client.answer == []
        assert (await Client(GOOD).ask(app)).response.status == 200

    run(test)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "post", "BREW"])
@pytest.mark.parametrize(
    "address", ["/invocations%0A", "/invocations%0a", "/invocations/", "//invocations", "/%69nvocations", "/ping", "*"]
)
def test_a_body_is_accepted_at_one_address_only(method: str, address: str) -> None:
    async def test() -> None:
        reached = []

        async def app_(scope: Scope, receive: Receive, send: Send) -> None:
            reached.append(scope["path"])
            await echo(scope, receive, send)

        app = Bounded(app_, 1000, 1, 1)
        response = (await Client(GOOD, method=method, address=address).ask(app)).response
        assert response.status == 404
        assert response.message == f"{address} does not accept {method}; expected /invocations."
        other = (await Client(GOOD, method="PUT").ask(app)).response
        assert (other.status, other.message) == (405, "/invocations does not accept PUT; expected POST.")
        assert reached == []

    run(test)


def authorized(value: bytes) -> list[tuple[bytes, bytes]]:
    return [*JSON, (b"authorization", value)]


@pytest.mark.parametrize("sent", [b"", b"Bearer ", b"Bearer s3cre", b"Bearer s3cret2", b"Basic s3cret", b"\xff"])
def test_only_requests_with_the_token_are_let_in(sent: bytes) -> None:
    async def test() -> None:
        app = Bounded(echo, 1000, 1, 1, token="s3cret")
        headers = authorized(sent) if sent else JSON
        for method, address in (("POST", URL), ("GET", "/version"), ("POST", "/ping")):
            client = await Client(GOOD, headers=headers, method=method, address=address).ask(app)
            found = "wrong" if sent else "missing"
            assert client.response.status == 401
            assert client.response.headers["www-authenticate"] == "Bearer"
            assert client.response.message == f"The token is {found}; expected Authorization: Bearer TOKEN."
        assert (await Client(GOOD, headers=authorized(b"Bearer s3cret")).ask(app)).response.status == 200
        assert (await Client(b"", method="GET", address="/ping").ask(app)).answer[0]["status"] == 200

    run(test)


@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("s3cret\n", "has spaces, line breaks or non-ASCII characters"),
        ("s3crét", "has spaces, line breaks or non-ASCII characters"),
    ],
)
def test_a_token_that_cannot_be_sent_is_refused(token: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_SERVE_TOKEN", token)
    with pytest.raises(SystemExit) as error:
        module._token()
    assert error.value.code == (
        f"PSPNET_SERVE_TOKEN: {found}; expected one word. Set another token, or unset it to serve without a token."
    )


def test_the_version_does_not_see_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_SERVE_TOKEN", "s3cret")
    assert module._token() == "s3cret"
    assert "PSPNET_SERVE_TOKEN" not in os.environ
    assert module._token() == ""


class Visitor:
    """A real connection to a server in this process."""

    def __init__(self, port: int, host: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), source_address=(host, 0))
        self.socket.setblocking(False)

    async def sends(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def hears(self) -> bytes:
        """Return the bytes received, or no bytes once the server has closed the connection."""
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        return b""

    async def hears_the_end(self) -> None:
        while await self.hears():
            pass


Enter = Callable[..., Awaitable[Visitor]]


@asynccontextmanager
async def listening(app: App) -> AsyncIterator[Enter]:
    """Run the server without a model, and yield a function that connects and sends something."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = uvicorn.Server(module.settings(app))
        served = asyncio.ensure_future(server._serve([listener]))

        async def enter(sent: bytes, host: str = "127.0.0.1") -> Visitor:
            visitor = Visitor(listener.getsockname()[1], host)
            opened.enter_context(visitor.socket)
            await visitor.sends(sent)
            return visitor

        try:
            yield enter
        finally:
            server.should_exit = server.force_exit = True
            await served


PING = b"GET /ping HTTP/1.1\r\nhost: here\r\n\r\n"
HEAD = f"POST {URL} HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n".encode()
HALVES = {
    "nothing": b"",
    "half a line": b"POST /invo",
    "half of the headers": HEAD,
    "half of the second request": PING + b"GET",
    "a body after its refusal": HEAD.replace(b"/json", b"/xml") + b"content-length: 10\r\n\r\n1",
}


@pytest.mark.parametrize("half", HALVES)
def test_a_half_sent_request_closes_its_connection(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_SECONDS", "CHECK_SECONDS", "DRAIN_SECONDS"):
        monkeypatch.setattr(module, name, 0.1)

    async def test() -> None:
        async with listening(Bounded(echo_nothing, 1000, 1, 1)) as enter:
            await (await enter(HALVES[half])).hears_the_end()

    run(test)


async def echo_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("limit", ["MOST_OF_A_CLIENT", "MOST_CONNECTIONS"])
def test_the_oldest_idle_connection_gives_way_to_a_new_one(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, limit, 3)

    async def test() -> None:
        begun, goes_on = asyncio.Semaphore(0), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            begun.release()
            await goes_on.wait()
            await echo_nothing(scope, receive, send)

        async with listening(Bounded(slow, 1000, 8, 8)) as enter:
            asking = [await enter(PING)]
            await begun.acquire()
            idle = [await enter(b"GET") for _ in range(2)]
            for visitor in idle:
                asking.append(await enter(PING))
                await begun.acquire()
                assert await visitor.hears() == b""
            answer = await (await enter(b"")).hears()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Too many connections are open. Try again in a moment." in answer
            if limit == "MOST_OF_A_CLIENT":
                asking.append(await enter(PING, "127.0.0.2"))
                await begun.acquire()
            goes_on.set()
            for visitor in asking:
                assert (await visitor.hears()).startswith(b"HTTP/1.1 200 ")

    run(test)


def test_an_answer_that_is_not_read_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.1)

    async def test() -> None:
        ends = asyncio.Event()

        class Watched(module.Connection):
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                ends.set()

        monkeypatch.setattr(module, "Connection", Watched)

        async def much(scope: Scope, receive: Receive, send: Send) -> None:
            size = 100_000_000
            headers = [(b"content-length", str(size).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": bytes(size)})

        async with listening(much) as enter:
            await enter(PING)
            await ends.wait()

    run(test)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("/a/socket", ""),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(address: str, client: str) -> None:
    assert module.client_of((address, 1)) == client


def test_a_failure_gets_500_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret")

    async def test() -> None:
        client = await Client(GOOD).ask(Bounded(failing, 1000, 1, 1))
        assert client.response.status == 500
        assert client.response.content == {
            "error_code": "INTERNAL_ERROR",
            "message": "The server failed; see its log.",
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
def test_an_app_error_is_shortened(told: dict[str, str], message: str) -> None:
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
        (b'["a"]', f"The request is JSON, but not an object; expected an object, {EXPECTED}"),
        (b'{"image": "a"}', f"The request has the keys 'image'; {ONE_OF}{EXPECTED}"),
        (b"{}", f"The request has the keys none; {ONE_OF}{EXPECTED}"),
        (b'{"inputs": 1, "instances": 2}', f"The request has the keys 'inputs', 'instances'; {ONE_OF}{EXPECTED}"),
        (b"[" * 20_000, "The request contains about 20,001 values; expected at most 10,000."),
        (
            json.dumps({"inputs": ["A" * 20_000, *["A"] * 10]}).encode(),
            f"inputs of very different lengths take too much memory; expected dataframe_split, {EXPECTED}",
        ),
    ],
    ids=["empty", "extra", "list", "key", "no key", "two keys", "values", "lengths"],
)
def test_a_request_that_is_costly_or_malformed_gets_400(body: bytes, message: str) -> None:
    async def test() -> None:
        response = (await Client(body).ask(Bounded(echo, 100_000, 1, 1))).response
        assert (response.status, response.message) == (400, message)

    run(test)


def test_deeply_nested_json_gets_400() -> None:
    async def test() -> None:
        response = (await Client(b"[" * 9_000 + b"]" * 9_000).ask(Bounded(echo, 100_000, 1, 1))).response
        assert response.status == 400

    run(test)


@pytest.mark.parametrize("kind", ["text/csv", "application/vnd.apache.parquet", "missing"])
def test_only_json_is_accepted(kind: str) -> None:
    """A small Parquet file can take gigabytes of memory when it is read."""

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
    """The port of a server shared by the tests that leave it running."""
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
def test_a_client_that_sends_too_much_gets_an_answer(port: int, streamed: bool) -> None:
    body = (b"A" * 100_000 for _ in range(60)) if streamed else b"A" * 6_000_000
    refused = post(port, body)
    assert (refused.status, refused.content["error_code"]) == (413, "REQUEST_TOO_LARGE")
    assert refused.message == "The request is larger than 2.0 MB. Send fewer or smaller images."
    assert post(port, split(encoded(noise(8, 8)))).status == 200


@pytest.mark.e2e
def test_the_other_addresses_of_mlflow_answer(port: int) -> None:
    assert (get(port, "/ping").status, get(port, "/health").status) == (200, 200)
    assert get(port, "/version").text.count(".") == 2
    assert (get(port, "/nothing").status, get(port, URL).status) == (404, 405)


@pytest.mark.e2e
def test_a_newline_in_the_address_gets_404(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", f"{URL}%0A", GOOD, {"content-type": "text/csv"})
        assert connection.getresponse().status == 404


LONG = [png_of_zeros(4000, 5000)] * 16


@pytest.mark.e2e
def test_a_busy_server_is_free_again_once_its_client_has_left(port: int) -> None:
    with working_on(port, LONG):
        busy = post(port, split(encoded(noise(8, 8))))
        assert busy.status == 503
        assert busy.headers["retry-after"] == "1"
        assert busy.content == {
            "error_code": "TEMPORARILY_UNAVAILABLE",
            "message": "The server is busy. Try again in a moment.",
        }
        assert get(port, "/ping").status == 200
    wait_until(lambda: post(port, split(encoded(noise(30, 50)))).status == 200, 60)


@contextlib.contextmanager
def working_on(port: int, images: list[bytes]) -> Iterator[socket.socket]:
    """Send a request that takes minutes, and enter the block once the server is working on that request and is full."""
    body = json.dumps(split(*images)).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        client.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: post(port, split(encoded(noise(8, 8)))).status == 503)
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
    with process([warm_python, "-P", "-c", HURRIED, SERVER, *options_for(version), *options], tmp_path) as started:
        port = port_of(started, tmp_path)
        with working_on(port, LONG) as client:
            started.send_signal(signal.SIGINT)
            assert started.wait(120) == 0
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in client.recv(1000)


@pytest.mark.e2e
def test_a_taken_port_is_reported_before_the_model_is_loaded(
    port: int, version: Path, warm_python: str, tmp_path: Path
) -> None:
    taken = server(warm_python, version, tmp_path, "--port", str(port))
    with pytest.raises(AssertionError) as error, taken:
        pass
    told = f"127.0.0.1:{port}: cannot listen there (Address already in use). Choose another --port or --host."
    assert told in str(error.value)


@pytest.mark.e2e
def test_a_model_that_cannot_be_loaded_is_reported(warm_python: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as error, server(warm_python, tmp_path / "nowhere", tmp_path):
        pass
    assert "models:/x/3: the model cannot be loaded: " in str(error.value)
