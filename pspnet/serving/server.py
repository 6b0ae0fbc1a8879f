"""Serves one version over HTTP: MLflow's own scoring server, bounded. Stands alone: pspnet is the version's own.

python -P server.py --model FOLDER --port 5001

Memory stays bounded whatever comes: a body is read only while few others are held, few requests are worked on at once,
and the rest is told to come back. What is refused or fails is told in short JSON.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MB = 1_000_000
MOST_BODY_MB = 64
BODY_SECONDS = 60  # for a client to send its whole request
DRAIN_SECONDS = 5  # what is refused is still read for so long, else the client sees a broken connection and no answer
STOP_SECONDS = 10  # for the requests under way, once the server is to stop
RETRY_SECONDS = 1
WORK_SECONDS = 600  # MLflow's own limit; 60 by default, too short for many large images on a CPU
MOST_VALUES = 10_000  # of a request's JSON: ten million empty lists fit into 64 MB and become gigabytes
MOST_MESSAGE = 20_000  # characters of an error
FORMATS = ("dataframe_split", "dataframe_records", "inputs", "instances")

log = logging.getLogger("pspnet.server")


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str, unread: bool = False) -> None:
        """`unread`: the client may still be sending."""
        super().__init__(message)
        self.status, self.code, self.unread = status, code, unread


class ClientGone(Exception):
    """Nobody is there any more to answer to."""


class Bounded:
    """Stands before MLflow's app."""

    def __init__(self, app: App, body_bytes: int, waiting: int, working: int) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._most_requests = waiting + working
        self._most_bytes = 4 * body_bytes  # of all bodies together
        self._requests = 0
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self._app(scope, receive, send)  # nothing behind these reads a body
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except ClientGone:
            return
        except Refused as refused:
            if refused.unread and not await _drained(scope, receive):
                return
            status, headers, body = refused.status, [], _error(refused.code, str(refused))
            if status == 503:
                headers = [(b"retry-after", str(RETRY_SECONDS).encode())]
        if status >= 400:
            body = _short(body)
            headers = [header for header in headers if header[0] == b"retry-after"]
            headers.append((b"content-type", b"application/json"))
        headers = [header for header in headers if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            found = f"content-type is {kind.decode(errors='replace')[:100] or 'missing'}; expected application/json."
            raise Refused(415, "BAD_REQUEST", found, unread=True)
        declared = _declared(headers.get(b"content-length"))
        held = self._body_bytes if declared is None else declared
        if held > self._body_bytes:
            raise self._too_large(unread=True)
        if self._requests >= self._most_requests or self._bytes + held > self._most_bytes:
            raise Refused(503, "TEMPORARILY_UNAVAILABLE", "The server is busy. Try again in a moment.", unread=True)
        self._requests += 1
        self._bytes += held
        try:
            body = await self._read(receive)
            if complaint := await asyncio.to_thread(_complaint, body, 4 * self._body_bytes):
                raise Refused(400, "BAD_REQUEST", complaint)
            return await self._work(scope, receive, body)
        finally:
            self._requests -= 1
            self._bytes -= held

    async def _read(self, receive: Receive) -> bytes:
        chunks, size, more = [], 0, True
        until = time.monotonic() + BODY_SECONDS
        while more:
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                raise Refused(408, "DEADLINE_EXCEEDED", f"The request took longer than {BODY_SECONDS} s.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self._body_bytes:
                raise self._too_large(unread=more)
        return b"".join(chunks)

    async def _work(self, scope: Scope, receive: Receive, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """What MLflow's app answers, unless the client leaves: then its request no longer waits for its turn."""
        question = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Message] = []

        async def ask() -> Message:
            return question.pop() if question else await asyncio.Future()

        async def keep(message: Message) -> None:
            answer.append(message)

        work = asyncio.ensure_future(self._app(scope, ask, keep))
        leave = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((work, leave), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leave.cancel()
            if not work.done():
                work.cancel()
        if work.cancelled() or not work.done():
            raise ClientGone
        try:
            work.result()
        except Exception:
            log.exception("A request failed.")
            raise Refused(500, "INTERNAL_ERROR", "The server failed; its log says why.") from None
        start, *parts = answer
        return start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in parts)

    def _too_large(self, unread: bool) -> Refused:
        found = (
            f"The request has more than {self._body_bytes / MB:,.1f} MB. Send fewer images at once, or smaller ones."
        )
        return Refused(413, "REQUEST_TOO_LARGE", found, unread)


def _declared(length: bytes | None) -> int | None:
    return int(length) if length and length.isdigit() else None


async def _drained(scope: Scope, receive: Receive) -> bool:
    """Whether the client is still there to be told."""
    if (b"expect", b"100-continue") in scope["headers"]:
        return True  # it waits for our word before it sends anything
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
    """What is wrong with a request that would cost MLflow's parser more memory than its size lets one expect."""
    if (values := 1 + body.count(b",") + body.count(b"[") + body.count(b"{")) > MOST_VALUES:
        return f"The request holds some {values:,} values; expected at most {MOST_VALUES:,}."
    try:
        content = json.loads(body)
        lengths = [len(text) for text in _texts(content)]
    except (ValueError, RecursionError) as error:
        return f"The request is not valid JSON ({str(error)[:200]})."
    example = 'for example {"dataframe_split": {"columns": ["image"], "data": [["..."]]}}'
    if not isinstance(content, dict):
        return f"The request is JSON, but no object; expected one, {example}."
    used = [key for key in content if key in FORMATS]
    if len(used) != 1 or content.keys() - {*used, "params"}:
        found = ", ".join(repr(key[:50]) for key in list(content)[:5]) or "none"
        return f"The request has the keys {found}; expected exactly one of {', '.join(FORMATS)}, {example}."
    # MLflow makes a NumPy array of these two, in which every text takes four bytes for each letter of the longest.
    if used[0] in ("inputs", "instances") and 4 * len(lengths) * max(lengths, default=0) > most_bytes:
        return f"{used[0]} of very different lengths cost too much memory; expected dataframe_split, {example}."
    return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _short(body: bytes) -> bytes:
    """An error as MLflow words it, without the traceback and the repeated request."""
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


def _bind(host: str, port: int) -> socket.socket:
    """Before the model is loaded: a port that is taken is told at once. Nobody can connect yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        sys.exit(f"{host}:{port}: cannot be listened on ({error.strerror}). Give another --port or --host.")
    return listener


def _load(model: str, title: str) -> Any:
    import mlflow.pyfunc

    try:
        return mlflow.pyfunc.load_model(model)
    except Exception as error:
        log.exception("The model cannot be loaded.")
        sys.exit(f"{title}: the model cannot be loaded: {error}")


def _body_bytes(model: Any, megabytes: float | None) -> int:
    """What the images that the model allows can take in base64 (4/3), with line breaks and JSON around them."""
    if megabytes is not None:
        return round(megabytes * MB)
    limits = model.model_config or {}
    allowed = 1.4 * limits.get("max_images", 1) * limits.get("max_image_mb", MOST_BODY_MB)
    return int(min(allowed, MOST_BODY_MB) * MB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or URI of an MLflow model")
    parser.add_argument("--title", help="what to call it (default: --model)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001, help="0: any free one")
    parser.add_argument("--max-body-mb", type=float, help="default: from the model's own limits, at most 64")
    parser.add_argument("--working", type=int, default=2, help="requests worked on at once")
    parser.add_argument("--waiting", type=int, default=16, help="requests that may wait; more are sent away (503)")
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when the standard input ends")
    arguments = parser.parse_args()
    title = arguments.title or arguments.model

    # Until uvicorn takes them over, and again when it has stopped. A prediction under way is not waited for.
    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if arguments.until_stdin_ends:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    listener = _bind(arguments.host, arguments.port)
    os.environ.setdefault("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(WORK_SECONDS))
    model = _load(arguments.model, title)
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it has a warning for every odd request

    import uvicorn
    from mlflow.pyfunc import scoring_server

    app = Bounded(
        scoring_server.init(model), _body_bytes(model, arguments.max_body_mb), arguments.waiting, arguments.working
    )
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )  # fmt: skip

    async def serve() -> None:
        # MLflow works in the loop's own threads. Where they are few, what has timed out cannot pile up either.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(arguments.working))
        listener.listen(128)
        host, port = listener.getsockname()[:2]
        sys.stdout.write(f"{title} on http://{f'[{host}]' if ':' in host else host}:{port}, Ctrl-C stops it\n")
        sys.stdout.flush()
        await uvicorn.Server(settings).serve(sockets=[listener])

    asyncio.run(serve())


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
