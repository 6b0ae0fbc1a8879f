"""Measures how fast a server answers, and how much memory it takes, while twenty clients send good and bad requests.

Every answer is checked: a good image's mask must equal the one that the version returns for that image alone, and each
bad request must be rejected properly. Exits with status 1 if any answer is wrong.

python benchmarks/serving.py                        an untrained network of the demo's size
python benchmarks/serving.py --model FOLDER         a version, downloaded or saved
python benchmarks/serving.py --attacks              good clients alone, then alongside the attacks in attacks.py

Under attack, every good request must be answered correctly, the 95th percentile (from the first try) must be at most
three times the value without attacks, and the server must stay below 1.5 GB.
"""

import argparse
import http.client
import io
import json
import os
import platform
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from pipeline import processor

from pspnet.machine.offline import go_offline
from pspnet.serving.client import own_code_environment, served

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "pspnet/serving/server.py"
START_SECONDS = 120
GOOD_CLIENTS = 4  # number of good clients with --attacks
MOST_TIMES_SLOWER = 3
MOST_MB = 1500
SIZES = [(96, 128, "PNG"), (96, 128, "JPEG"), (192, 256, "PNG"), (240, 320, "JPEG"), (480, 640, "PNG")]


@dataclass(frozen=True)
class Question:
    kind: str
    share: float
    body: bytes
    status: int
    says: str  # text that the message must contain
    masks: tuple[np.ndarray, ...] = ()


@dataclass
class Tally:
    seconds: list[float] = field(default_factory=list)  # time per good request
    in_all: list[float] = field(default_factory=list)  # time per good request, counted from the first try
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a version (default: one with random weights)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--attacks", action="store_true")
    arguments = parser.parse_args()
    go_offline()
    with tempfile.TemporaryDirectory() as temporary:
        version = arguments.model or random_version(Path(temporary))
        questions = make_questions(version)
        with started_server(version) as (server, port, start_seconds):
            for question in questions:  # a warm-up, so that work done only once is not measured
                if question.masks:
                    ask(port, question)
            before = memory(server)
            if arguments.attacks:
                fine = under_attack(server, port, [q for q in questions if q.masks], arguments.seconds)
            else:
                fine = under_load(server, port, questions, arguments.clients, arguments.seconds)
            alive = server.poll() is None and ask_once(port, "GET", "/ping", None)[0] == 200
            started = time.monotonic()
            server.terminate()
            status = server.wait(30)
            stop_seconds = time.monotonic() - started
    print(f"\n{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {version.name}")
    print(f"Memory of the server before: {before:,.0f} MB.")
    print(f"Started in {start_seconds:.1f} s, stopped in {stop_seconds:.1f} s with status {status}.")
    print("No crash." if alive else "THE SERVER HAS CRASHED.")
    sys.exit(not fine or not alive or status != 0)


@contextmanager
def started_server(version: Path) -> Iterator[tuple[subprocess.Popen[str], int, float]]:
    """Yield the server, its port, and the seconds until it answered."""
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-P", str(SERVER), "--model", str(version.resolve()), "--port", "0"],
        env=own_code_environment(), stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout
            port = int(server.stdout.readline().partition("http://127.0.0.1:")[2].partition(",")[0])
            yield server, port, time.monotonic() - started
        finally:
            server.kill()


def under_load(
    server: subprocess.Popen[str], port: int, questions: list[Question], clients: int, seconds: float
) -> bool:
    tally, seconds, peak = load(server, port, questions, clients, seconds)
    report(tally, seconds)
    print(f"Peak memory of the server: {peak:,.0f} MB.")
    return not tally.wrong


def under_attack(server: subprocess.Popen[str], port: int, questions: list[Question], seconds: float) -> bool:
    print("Good clients alone:\n")
    alone, alone_seconds, _ = load(server, port, questions, GOOD_CLIENTS, seconds)
    report(alone, alone_seconds)
    print("\nAlongside the attacks:\n")
    with subprocess.Popen(
        [sys.executable, ROOT / "benchmarks/attacks.py", str(port), str(seconds)], stdout=subprocess.PIPE, text=True
    ) as attackers:
        tally, seconds, peak = load(server, port, questions, GOOD_CLIENTS, seconds)
        assert attackers.stdout
        outcomes = json.load(attackers.stdout)
    report(tally, seconds)
    print("\n| attack | results |\n|---|---|")
    for name, counts in outcomes.items():
        print(f"| {name} | {', '.join(f'{count} x {outcome}' for outcome, count in counts.items())} |")
    usual, late = percentile(alone.in_all, 95), percentile(tally.in_all, 95)
    print(
        f"\n95th percentile {late:.2f} s, {late / usual:.1f} times that without attacks (at most {MOST_TIMES_SLOWER})."
    )
    print(f"Peak memory of the server: {peak:,.0f} MB (must be below {MOST_MB:,}).")
    return not alone.wrong and not tally.wrong and late <= MOST_TIMES_SLOWER * usual and peak < MOST_MB


def percentile(seconds: list[float], share: int) -> float:
    return statistics.quantiles(seconds, n=100)[share - 1]


def random_version(folder: Path) -> Path:
    import torch

    from pspnet.config.params import load_params
    from pspnet.model.backbone.preprocessing import Preprocessing
    from pspnet.model.bundle import Bundle
    from pspnet.model.network import Architecture, PSPNet
    from pspnet.raw.classes import default_color
    from pspnet.registry.packaging import save_version

    params = load_params(ROOT / "params.yaml")
    torch.manual_seed(0)
    names = ("sky", "road", "building", "tree", "car", "person")
    architecture = Architecture(params.backbone.depth, params.backbone.width, 8, len(names), params.finetune.dropout)
    preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    bundle = folder / "bundle"
    bundle.mkdir()
    colors = tuple(default_color(number) for number in range(len(names)))
    Bundle(PSPNet(architecture), preprocessing, names, colors, "none", {}, "").save(bundle)
    started = time.monotonic()
    save_version(bundle, params, {}, folder / "random weights")
    print(f"Saved a version in {time.monotonic() - started:.1f} s (MLflow's import included).", file=sys.stderr)
    return folder / "random weights"


def make_questions(version: Path) -> list[Question]:
    """Return good and bad requests for the limits in the committed params.yaml: 16 images, 20 MB, 25 megapixels."""
    images = {f"{kind} {width} x {height}": encoded(height, width, kind) for height, width, kind in SIZES}
    started = time.monotonic()
    with served(version) as ask_alone:
        print(f"Loaded it in {time.monotonic() - started:.1f} s.", file=sys.stderr)
        masks = {name: ask_alone([data])[0].mask for name, data in images.items()}
    names = list(images)
    good = [
        Question(f"good: {name}", share, request(images[name]), 200, "", (masks[name],))
        for name, share in zip(names, (20, 15, 15, 10, 4), strict=True)
    ]
    three = names[:3]
    good.append(
        Question("good: three images", 6, request(*(images[n] for n in three)), 200, "", tuple(masks[n] for n in three))
    )
    sound = images[names[0]]
    bomb = png(50_000, 50_000, b"\0")
    zeros = png(20_000, 20_000, bytes(2501 * 20_000))
    return [
        *good,
        Question("bad: truncated", 5, request(sound, sound[: len(sound) // 2]), 400, "image 2: cannot be decoded"),
        Question("bad: no image", 5, request(b"These are words."), 400, "image 1: cannot be recognized as an image"),
        Question("bad: empty", 4, request(b"", None), 400, "image 2: is null"),
        Question("bad: no JSON", 2, b"\xff" * 1000, 400, "The request is not valid JSON"),
        Question("bad: too many", 2, request(*[sound] * 17), 400, "request: contains 17 images"),
        Question("bad: bomb, 2,500 megapixels claimed", 4, request(bomb), 400, "image 1: has 2,500.0 megapixels"),
        Question("bad: bomb, 400 megapixels of zeros", 4, request(zeros), 400, "image 1: has 400.0 megapixels"),
        Question("bad: image of 21 MB", 2, request(bytes(21_000_000)), 400, "image 1: is 21.0 MB"),
        Question("bad: request of 80 MB", 2, request(bytes(60_000_000)), 413, "The request is larger than 64.0 MB"),
    ]


def encoded(height: int, width: int, kind: str) -> bytes:
    """Encode an image of coarse noise, which is neither flat nor as hard to compress as fine noise."""
    coarse = np.random.default_rng(height).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def png(width: int, height: int, data: bytes) -> bytes:
    """Return a 1-bit grayscale PNG."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(data, 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts.items()
    )


def request(*images: bytes | None) -> bytes:
    rows = [[image if image is None else b64encode(image).decode()] for image in images]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()


def ask_once(port: int, method: str, path: str, body: bytes | None) -> tuple[int, bytes, float]:
    """Return the status, the body, and the seconds to wait before trying again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read(), float(response.getheader("retry-after", 0))
    finally:
        connection.close()


def ask(port: int, question: Question) -> tuple[int, str, float]:
    """Return the status, what is wrong with the answer, and the seconds to wait before trying again."""
    status, body, wait = ask_once(port, "POST", "/invocations", question.body)
    if status == 503 and wait:
        return status, "", wait
    if status != question.status:
        return status, f"{question.kind}: {status} {body[:200]!r}", 0
    content = json.loads(body)
    if status != 200:
        short = set(content) == {"error_code", "message"} and question.says in content["message"] and len(body) < 1000
        return status, "" if short else f"{question.kind}: {body[:300]!r}", 0
    masks = [np.array(Image.open(io.BytesIO(b64decode(row["mask"])))) for row in content["predictions"]]
    same = len(masks) == len(question.masks) and all(map(np.array_equal, masks, question.masks))
    return status, "" if same else f"{question.kind}: a different mask", 0


def load(
    server: subprocess.Popen[str], port: int, questions: list[Question], clients: int, seconds: float
) -> tuple[Tally, float, float]:
    """Send requests for `seconds`. Returns all answers, the seconds it took, and the server's peak memory."""
    tally = Tally()
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < until:
            [question] = chance.choices(questions, [question.share for question in questions])
            status, first = 503, time.monotonic()
            while status == 503 and time.monotonic() < until:
                started = time.monotonic()
                try:
                    status, wrong, wait = ask(port, question)
                except (OSError, http.client.HTTPException) as error:
                    status, wrong, wait = 0, f"{question.kind}: {error!r}", 0
                with tally.lock:
                    tally.answers[question.kind, status] += 1
                    tally.wrong += [wrong] if wrong else []
                    if status == 200:
                        tally.seconds.append(time.monotonic() - started)
                        tally.in_all.append(time.monotonic() - first)
                time.sleep(wait)

    started = time.monotonic()
    peak = while_running([threading.Thread(target=client, args=(n,)) for n in range(clients)], lambda: memory(server))
    return tally, time.monotonic() - started, peak


def while_running(threads: list[threading.Thread], measure: Callable[[], float]) -> float:
    for thread in threads:
        thread.start()
    most = 0.0
    while any(thread.is_alive() for thread in threads):
        most = max(most, measure())
        time.sleep(0.1)
    return most


def memory(server: subprocess.Popen[str]) -> float:
    """Return the server's memory in megabytes, or 0 if the server is gone."""
    try:
        return psutil.Process(server.pid).memory_info().rss / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def report(tally: Tally, seconds: float) -> None:
    kinds = sorted({kind for kind, _ in tally.answers}, key=lambda kind: (not kind.startswith("good"), kind))
    print("| request | answers | status | told to retry (503) |\n|---|---|---|---|")
    for kind in kinds:
        statuses = {status: count for (name, status), count in tally.answers.items() if name == kind}
        busy = statuses.pop(503, 0)
        print(f"| {kind} | {sum(statuses.values())} | {', '.join(map(str, sorted(statuses)))} | {busy} |")
    answered = sum(count for (_, status), count in tally.answers.items() if status != 503)
    busy = sum(tally.answers.values()) - answered
    rate = answered / seconds
    print(f"\n{answered} requests answered in {seconds:.0f} s, {rate:.1f}/s; {busy} times a client was told to retry.")
    if len(tally.seconds) > 1:
        middle, late = percentile(tally.seconds, 50), percentile(tally.seconds, 95)
        print(f"Good requests: median {middle:.2f} s, 95th percentile {late:.2f} s.")
    for complaint in tally.wrong[:20]:
        print(f"WRONG: {complaint}")
    print(f"{len(tally.wrong)} wrong answers.")


if __name__ == "__main__":
    main()
