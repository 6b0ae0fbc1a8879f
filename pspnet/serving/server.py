"""Serves one version over HTTP, using MLflow's own scoring server with limits in front of it.

python -P server.py --model FOLDER --port 5001

Memory use is bounded, whatever clients send: the bytes of all bodies are counted as they arrive, only a few requests
are processed at once, a limited number wait, and all others are asked to try again later. When a resource is scarce,
the client that uses most of that resource has to give way. A rejected or failed request gets a short JSON response.

This is one long file on purpose. It runs in the process that loads the version, where the only pspnet must be the
version's own, so this file cannot import helper modules.
"""

import argparse
import asyncio
import hmac
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MB = 1_000_000
MOST_BODY_MB = 64
BODY_SECONDS = 60  # how long a client may take to send its whole request
PROGRESS_SECONDS, PROGRESS_BYTES = 10, 16_000  # in each period, at least this many bytes must arrive
HEADER_SECONDS = 10  # how long a client may take to send a request's headers, or the rest of a rejected body
ANSWER_SECONDS = 60  # how long a client may take to receive the next part of its answer
CHECK_SECONDS = 1  # how often a connection is checked
MOST_CONNECTIONS = 200  # some systems allow a process 256 open files
MOST_OF_A_CLIENT = 64
DRAIN_SECONDS = 5  # how long to read a rejected body, so that the client sees our answer, not a broken connection
STOP_SECONDS = 10  # how long active requests may take once the server is told to stop
RETRY_SECONDS = 1
WORK_SECONDS = 600  # MLflow's limit; its default of 60 is too short for many large images on a CPU
MOST_VALUES = 10_000  # in a request's JSON; ten million empty lists fit into 64 MB but take gigabytes once parsed
MOST_MESSAGE = 20_000  # characters in an error message
ADDRESS = b"/invocations"
WITHOUT_TOKEN = (b"/ping", b"/health")
TOKEN = "PSPNET_SERVE_TOKEN"  # noqa: S105  the name of a variable
FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")

log = logging.getLogger("pspnet.server")


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, unread: bool = False) -> None:
        """`unread`: the client may still be sending the request's body."""
        super().__init__(message)
        self.status, self.code, self.unread = status, code, unread


class ClientGone(Exception):
    """The client has disconnected, so there is no one to answer."""


def _busy(unread: bool) -> Refused:
    return Refused(503, "TEMPORARILY_UNAVAILABLE", "The server is busy. Try again in a moment.", unread)


class Body:
    def __init__(self, client: str) -> None:
        self.client = client
        self.size = 0  # bytes received so far
        self.evicted = False
        self.limit = asyncio.timeout(None)


class Memory:
    """Limits the bytes of all bodies together.

    Above the limit, the client whose bodies take the most bytes loses the body that has stalled the longest.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.bytes = 0
        self._by_client: Counter[str] = Counter()
        self._arriving: dict[Body, None] = {}  # the longest stalled first

    def add(self, body: Body, size: int) -> None:
        self._arriving.pop(body, None)
        self._arriving[body] = None
        self._count(body, size)
        while self.bytes > self._most_bytes:
            victim = max(self._arriving, key=lambda other: self._by_client[other.client])
            self.forget(victim)
            if victim is body:
                raise _busy(unread=True)
            victim.evicted = True
            if not victim.limit.expired():
                victim.limit.reschedule(0)

    def arrived(self, body: Body) -> None:
        """Keep this body from now on, regardless of what other clients send."""
        self._arriving.pop(body, None)

    def forget(self, body: Body) -> None:
        self._arriving.pop(body, None)
        self._count(body, -body.size)

    def _count(self, body: Body, size: int) -> None:
        body.size += size
        self.bytes += size
        self._by_client[body.client] += size
        if not self._by_client[body.client]:
            del self._by_client[body.client]


class Turns:
    """Lets clients take turns. Requests from the same client keep their order."""

    def __init__(self, working: int, waiting: int) -> None:
        self._free = working
        self._most_waiting = waiting
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._next()

    async def _wait(self, client: str) -> None:
        self._make_room(client)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(KeyError, ValueError):  # _next has already removed it
                    self._waiting[client].remove(turn)
                    if not self._waiting[client]:
                        del self._waiting[client]
            elif not turn.exception():
                self._next()  # its turn came just as it was cancelled
            raise

    def _make_room(self, client: str) -> None:
        """Make room for a request: a client with many waiting requests loses its last one to a client with few."""
        if sum(map(len, self._waiting.values())) < self._most_waiting:
            return
        most = max(self._waiting.values(), key=len, default=deque[asyncio.Future[None]]())
        if len(most) <= len(self._waiting.get(client, ())) + 1:
            raise _busy(unread=False)
        if not (last := most.pop()).done():
            last.set_exception(_busy(unread=False))

    def _next(self) -> None:
        while self._waiting:
            client, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            del self._waiting[client]
            if turns:
                self._waiting[client] = turns  # the client goes to the end of the line
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


_given_up: ContextVar[threading.Event | None] = ContextVar("_given_up", default=None)


def given_up() -> bool:
    """Return True once no one is waiting anymore for what this thread computes."""
    event = _given_up.get()
    return event is not None and event.is_set()


class Bounded:
    """An ASGI app that enforces the limits in front of MLflow's app."""

    def __init__(self, app: App, body_bytes: int, waiting: int, working: int, token: str = "") -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._most_bytes = 4 * body_bytes  # limit for all bodies together
        self._memory = Memory(self._most_bytes)
        self._turns = Turns(working, waiting)
        self._authorization = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._let_in(scope)
            if scope["method"] in ("GET", "HEAD"):
                await self._app(scope, receive, send)  # no handler for these addresses reads a body
                return
            status, headers, body = await self._answer(scope, receive)
        except ClientGone:
            return
        except Refused as refused:
            if refused.unread and not await _drained(scope, receive):
                return
            status, headers, body = refused.status, [], _error(refused.code, str(refused))
            if status == 503:
                headers = [(b"retry-after", str(RETRY_SECONDS).encode())]
            if status == 401:
                headers = [(b"www-authenticate", b"Bearer")]
        if status >= 400:
            body = _short(body)
            headers = [header for header in headers if header[0] in (b"retry-after", b"www-authenticate")]
            headers.append((b"content-type", b"application/json"))
        headers = [header for header in headers if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _let_in(self, scope: Scope) -> None:
        """Check token, address and method.

        The address is compared exactly as sent, because routes also accept other spellings of the same address.
        """
        method, address = scope["method"], scope["raw_path"]
        reads = method in ("GET", "HEAD")
        if self._authorization and not (reads and address in WITHOUT_TOKEN):
            sent = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(sent, self._authorization):
                found = f"The token is {'wrong' if sent else 'missing'}; expected Authorization: Bearer TOKEN."
                raise Refused(401, "UNAUTHENTICATED", found, unread=True)
        if not reads and address != ADDRESS:
            found = f"{address[:100].decode(errors='replace')} does not accept {method}; expected {ADDRESS.decode()}."
            raise Refused(404, "ENDPOINT_NOT_FOUND", found, unread=True)
        if not reads and method != "POST":
            raise Refused(
                405, "BAD_REQUEST", f"{ADDRESS.decode()} does not accept {method}; expected POST.", unread=True
            )

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            found = f"content-type is {kind.decode(errors='replace')[:100] or 'missing'}; expected application/json."
            raise Refused(415, "BAD_REQUEST", found, unread=True)
        if (_declared(headers.get(b"content-length")) or 0) > self._body_bytes:
            raise self._too_large(unread=True)
        body = Body(client_of(scope["client"]))
        try:
            data = await self._read(body, receive)
            return await self._work(scope, receive, data, body.client)
        finally:
            self._memory.forget(body)

    async def _read(self, body: Body, receive: Receive) -> bytes:
        """Read a body. The bytes are counted as they arrive, because headers can declare any size."""
        now = asyncio.get_running_loop().time
        chunks, more, progress, started = [], True, 0, now()
        due = started + PROGRESS_SECONDS
        try:
            async with body.limit:
                while more:
                    body.limit.reschedule(min(due, started + BODY_SECONDS))
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    more = message.get("more_body", False)
                    if body.evicted:
                        raise _busy(unread=more)
                    chunks.append(message.get("body", b""))
                    self._memory.add(body, len(chunks[-1]))
                    if body.size > self._body_bytes:
                        raise self._too_large(unread=more)
                    if body.size >= progress + PROGRESS_BYTES:
                        progress, due = body.size, now() + PROGRESS_SECONDS
                self._memory.arrived(body)
        except TimeoutError:
            if body.evicted:
                raise _busy(unread=True) from None
            found = (
                f"Only {body.size / 1000:,.1f} kB arrived in {now() - started:,.0f} s; expected "
                f"{PROGRESS_BYTES / 1000:,.0f} kB every {PROGRESS_SECONDS} s and all of it within {BODY_SECONDS} s."
            )
            raise Refused(408, "DEADLINE_EXCEEDED", found) from None
        return b"".join(chunks)

    async def _work(
        self, scope: Scope, receive: Receive, body: bytes, client: str
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Return the answer of MLflow's app.

        If the client disconnects, its request no longer gets a turn, or is abandoned if it is already being processed.
        """
        question = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Message] = []
        nobody_waits, begun = threading.Event(), asyncio.Event()

        async def ask() -> Message:
            return question.pop() if question else await asyncio.Future()

        async def keep(message: Message) -> None:
            answer.append(message)

        async def work_on() -> None:
            async with self._turns.turn(client):
                begun.set()
                _given_up.set(nobody_waits)
                if complaint := await asyncio.to_thread(_complaint, body, 4 * self._body_bytes):
                    raise Refused(400, "BAD_REQUEST", complaint)
                await self._app(scope, ask, keep)

        work = asyncio.ensure_future(work_on())
        leave = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((work, leave), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                nobody_waits.set()
                if not begun.is_set():
                    work.cancel()
                await asyncio.wait([work])  # a thread cannot be stopped, so it keeps its slot and memory until it exits
                raise ClientGone
        finally:
            nobody_waits.set()
            leave.cancel()
            work.cancel()
            if work.done() and not work.cancelled():
                work.exception()  # retrieved because asyncio would log it otherwise
        try:
            work.result()
        except Refused:
            raise
        except Exception:
            log.exception("A request failed.")
            raise Refused(500, "INTERNAL_ERROR", "The server failed; see its log.") from None
        start, *parts = answer
        return start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in parts)

    def _too_large(self, unread: bool) -> Refused:
        found = f"The request is larger than {self._body_bytes / MB:,.1f} MB. Send fewer or smaller images."
        return Refused(413, "REQUEST_TOO_LARGE", found, unread)


def client_of(address: tuple[str, int] | None) -> str:
    """Return what identifies the client: its IPv4 address, or its IPv6 /64 network, usually that of one customer."""
    try:
        ip = ipaddress.ip_address(address[0] if address else "")
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Address(int(ip) >> 64 << 64))


def _declared(length: bytes | None) -> int | None:
    return int(length) if length and length.isdigit() else None


async def _drained(scope: Scope, receive: Receive) -> bool:
    """Read and discard the rest of a rejected body. Return whether the client is still connected."""
    if (b"expect", b"100-continue") in scope["headers"]:
        return True  # the client waits for our answer before it sends its body
    until = time.monotonic() + DRAIN_SECONDS
    while (left := until - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            break
        if message["type"] == "http.disconnect":
            return False
        if not message.get("more_body", False):
            break
    return True


def _complaint(body: bytes, most_bytes: int) -> str:
    """Return an error message if MLflow's parser would reject the body, or would need far more memory than its size.

    Return an empty string if the body is fine.
    """
    if (values := 1 + body.count(b",") + body.count(b"[") + body.count(b"{")) > MOST_VALUES:
        return f"The request contains about {values:,} values; expected at most {MOST_VALUES:,}."
    try:
        content = json.loads(body)
        lengths = [len(text) for text in _texts(content)]
    except (ValueError, RecursionError) as error:
        return f"The request is not valid JSON ({str(error)[:200]})."
    example = 'for example {"dataframe_split": {"columns": ["image"], "data": [["..."]]}}'
    if not isinstance(content, dict):
        return f"The request is JSON, but not an object; expected an object, {example}."
    used = [key for key in content if key in FORMATS]
    if len(used) != 1 or content.keys() - {*used, "params"}:
        found = ", ".join(repr(key[:50]) for key in list(content)[:5]) or "none"
        return f"The request has the keys {found}; expected exactly one of {', '.join(FORMATS)}, {example}."
    # MLflow turns these two into a NumPy array, where each string takes four bytes per character of the longest string.
    if used[0] in ("inputs", "instances") and 4 * len(lengths) * max(lengths, default=0) > most_bytes:
        return f"{used[0]} of very different lengths take too much memory; expected dataframe_split, {example}."
    return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _short(body: bytes) -> bytes:
    """Return MLflow's error without the traceback and the copy of the request in it."""
    try:
        content = json.loads(body)
        code, message = str(content["error_code"]), str(content["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "INTERNAL_ERROR", body.decode(errors="replace").strip()
    if message.startswith(("Failed to predict data", "Failed to enforce schema")):
        message = re.split("Error: ", message)[-1]
    return _error(code, message[-MOST_MESSAGE:])


def _error(code: str, message: str) -> bytes:
    return json.dumps({"error_code": code, "message": message}).encode()


class Connection(H11Protocol):
    """A connection that closes if its client keeps us waiting too long.

    If there are too many connections, the oldest idle one is closed in favor of a new one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.whose = client_of(self.client)
        self._waiting_for: tuple[str, int] | None = None
        self._since = self.loop.time()
        self._check()
        alive = [other for other in self.connections if isinstance(other, Connection) and not other.closing]
        mine = [other for other in alive if other.whose == self.whose]
        for connections, most in ((mine, MOST_OF_A_CLIENT), (alive, MOST_CONNECTIONS)):
            if len(connections) > most and not self.closing:
                self._make_room([other for other in connections if other is not self and not other.closing])

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def closing(self) -> bool:
        return bool(self.transport.is_closing())

    def _make_room(self, others: "list[Connection]") -> None:
        if idle := [other for other in others if other._awaited()]:
            min(idle, key=lambda other: other._since).transport.abort()
            return
        body = _error("TEMPORARILY_UNAVAILABLE", "Too many connections are open. Try again in a moment.")
        head = f"HTTP/1.1 503 Service Unavailable\r\nretry-after: {RETRY_SECONDS}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _awaited(self) -> tuple[str, int] | None:
        """Return what we are waiting for the client to do: to receive its answer or to send a request's headers.

        Return None while we are working.
        """
        if unsent := self.transport.get_write_buffer_size():
            return "answer", unsent
        under_way = self.cycle is not None and not self.cycle.response_complete
        return None if under_way else ("request", id(self.cycle))

    def _check(self) -> None:
        now, awaited = self.loop.time(), self._awaited()
        if awaited != self._waiting_for:
            self._waiting_for, self._since = awaited, now
        elif awaited and now > self._since + (ANSWER_SECONDS if "answer" in awaited else HEADER_SECONDS):
            self.transport.abort()
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)


def settings(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=Connection, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
        proxy_headers=False,  # otherwise a client could choose its identity
        timeout_graceful_shutdown=STOP_SECONDS,
    )  # fmt: skip


def _token() -> str:
    """Return the token, and remove it from the environment before the version's code can read it."""
    token = os.environ.pop(TOKEN, None)
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        found = "is empty" if not token.strip() else "has spaces, line breaks or non-ASCII characters"
        sys.exit(f"{TOKEN}: {found}; expected one word. Set another token, or unset it to serve without a token.")
    return token or ""


def _bind(host: str, port: int) -> socket.socket:
    """Bind the port before the model is loaded, so that a port in use is reported at once. No one can connect yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        sys.exit(f"{host}:{port}: cannot listen there ({error.strerror}). Choose another --port or --host.")
    return listener


def _load(model: str, title: str) -> Any:
    import mlflow.pyfunc

    try:
        return mlflow.pyfunc.load_model(model)
    except Exception as error:
        log.exception("The model cannot be loaded.")
        sys.exit(f"{title}: the model cannot be loaded: {error}")


def _body_bytes(model: Any, megabytes: float | None) -> int:
    """Return the maximum request size in bytes. By default, it fits the largest images that the model accepts.

    In base64, images take 4/3 of their size, plus line breaks and JSON.
    """
    if megabytes is not None:
        return round(megabytes * MB)
    limits = model.model_config or {}
    allowed = 1.4 * limits.get("max_images", 1) * limits.get("max_image_mb", MOST_BODY_MB)
    return int(min(allowed, MOST_BODY_MB) * MB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or URI of an MLflow model")
    parser.add_argument("--title", help="the name to print (default: --model)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001, help="0: any free port")
    parser.add_argument("--max-body-mb", type=float, help="default: from the model's limits, at most 64")
    parser.add_argument("--working", type=int, default=2, help="requests processed at once")
    parser.add_argument("--waiting", type=int, default=16, help="requests that can wait; others get a 503")
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when the standard input ends")
    arguments = parser.parse_args()
    title = arguments.title or arguments.model

    # Before uvicorn handles signals, and after it has stopped, a signal must not wait for a prediction in progress.
    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if arguments.until_stdin_ends:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    token = _token()
    listener = _bind(arguments.host, arguments.port)
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(WORK_SECONDS))
    model = _load(arguments.model, title)
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # uvicorn warns about every malformed request

    from mlflow.pyfunc import scoring_server

    model.unwrap_python_model().given_up = given_up  # older versions do not call this
    app = Bounded(
        scoring_server.init(model),
        _body_bytes(model, arguments.max_body_mb),
        arguments.waiting,
        arguments.working,
        token,
    )

    async def serve() -> None:
        # MLflow works in the event loop's threads. Their small number prevents timed-out requests from piling up.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(arguments.working))
        listener.listen(128)
        host, port = listener.getsockname()[:2]
        sys.stdout.write(f"{title} on http://{f'[{host}]' if ':' in host else host}:{port}, Ctrl-C stops it\n")
        sys.stdout.flush()
        await uvicorn.Server(settings(app)).serve(sockets=[listener])

    asyncio.run(serve())


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
