from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.datasets.image import load_image
from pipelines.errors import ImageError, SsrError
from pipelines.execution.pool import map_bounded, prefetch, process_pool, resolve_workers

DIE = "import os; os._exit(3)"


def _slow_if_even(number: int) -> int:
    time.sleep(0.01 * (number % 2 == 0))
    return number * number


@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
def test_results_keep_the_order_of_the_items(ahead: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(map_bounded(pool, _slow_if_even, range(9), ahead)) == [(n, n * n) for n in range(9)]


@pytest.mark.parametrize("ahead", [1, 3, 7])
def test_reads_only_so_far_ahead(ahead: int) -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    with ThreadPoolExecutor(2) as pool:
        results = map_bounded(pool, abs, endless(), ahead)
        assert read == 0
        for done in range(1, 6):
            next(results)
            assert read - done < ahead
            assert read == done + ahead - 1
        results.close()


def test_prefetch_keeps_the_order_too() -> None:
    assert list(prefetch(_slow_if_even, range(99))) == [(n, n * n) for n in range(99)]


def test_no_items() -> None:
    assert list(prefetch(abs, [])) == []


def _bad_two(number: int) -> int:
    if number == 2:
        raise ImageError("two", "mend it")
    return number


def test_an_image_error_is_a_value() -> None:
    results = list(prefetch(_bad_two, range(4)))
    assert [n for n, _ in results] == [0, 1, 2, 3]
    error = results[2][1]
    assert isinstance(error, ImageError)
    assert (error.message, error.hint) == ("two", "mend it")
    assert [r for n, r in results if n != 2] == [0, 1, 3]


@pytest.mark.parametrize("error", [ValueError("x"), SsrError("x"), KeyError("x")])
def test_other_errors_stop_the_run(error: Exception) -> None:
    def fail(number: int) -> int:
        if number == 1:
            raise error
        return number

    results = prefetch(fail, range(100))
    assert next(results) == (0, 0)
    with pytest.raises(type(error)) as caught:
        next(results)
    assert caught.value is error


def test_what_has_not_begun_is_cancelled_when_the_consumer_leaves() -> None:
    gate, begun = threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        if number:
            gate.wait(10)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = map_bounded(pool, work, range(100), 20)
        assert next(results) == (0, 0)
        results.close()
        gate.set()
    assert len(begun) <= 2


def _here() -> tuple[int, list[str], str, bool, int]:
    """What a worker is: its server, its limits of threads, a variable, whether torch is there, threads of its server."""
    server = os.getppid()
    limits = [os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")]
    return server, limits, os.environ["SET_LATE"], "torch" in sys.modules, len(list(Path(f"/proc/{server}/task").iterdir()))


def test_workers_of_all_pools_are_forks_of_one_light_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = set()
    for value in ("a", "b"):
        monkeypatch.setenv("SET_LATE", value)
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        with process_pool(1) as pool:
            server, *rest = pool.submit(_here).result()
            assert rest == [["1"] * 3, value, False, 1]
            servers.add(server)
            ((_, error),) = map_bounded(pool, load_image, [tmp_path / "absent.png"], 2)
        assert os.environ["OMP_NUM_THREADS"] == "5"
    assert len(servers - {os.getpid()}) == 1
    assert isinstance(error, ImageError)
    assert "absent.png" in error.message


@pytest.mark.parametrize("end", [DIE, "import os; os.kill(os.getppid(), 9)"], ids=["worker", "fork server"])
def test_a_dead_process_is_one_clear_line(end: str) -> None:
    with process_pool(1) as pool:
        server = Path(f"/proc/{pool.submit(os.getppid).result()}/stat")
        with pytest.raises(SsrError, match="a worker process died") as caught:
            list(map_bounded(pool, exec, ["pass", end, "import time; time.sleep(0.2)"], 10))
    assert "--workers" in str(caught.value)
    while end != DIE and server.exists() and " Z " not in server.read_text():  # the next test starts another
        time.sleep(0.005)


def test_a_server_that_refuses_a_worker_is_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(fds: list[int]) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("multiprocessing.forkserver.connect_to_new_process", refused)
    with process_pool(1) as pool, pytest.raises(SsrError, match="a worker process died"):
        list(map_bounded(pool, abs, [1], 1))


def test_a_fork_of_a_process_with_a_pool_has_pools_of_its_own() -> None:
    with process_pool(1) as pool:
        server = pool.submit(os.getppid).result()
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()

    def ask() -> None:
        with process_pool(1) as pool:
            said.put(pool.submit(os.getppid).result())

    child = context.Process(target=ask)
    child.start()
    child.join(60)
    assert (child.exitcode, said.get()) == (0, child.pid)
    assert child.pid != server


def test_a_worker_that_died_while_nobody_looked() -> None:
    with process_pool(1) as pool:
        results = map_bounded(pool, exec, ["pass", DIE, "pass", "pass"], 2)
        assert next(results) == ("pass", None)
        while not pool._broken:  # the consumer is busy meanwhile
            time.sleep(0.005)
        with pytest.raises(SsrError, match="a worker process died"):
            list(results)


def test_resolve_workers() -> None:
    assert resolve_workers(3) == 3
    assert 1 <= resolve_workers(0) <= (os.cpu_count() or 1)


POOL = """
import os, sys, time
from pathlib import Path
from pipelines.execution.interruption import finishing_on_signals, interrupted
from pipelines.execution.pool import process_pool
if __name__ == "__main__":
    with finishing_on_signals(print), process_pool(2) as pool:
        print(pool.submit(os.getpid).result(), pool.submit(os.getppid).result(), flush=True)
        while not interrupted():
            time.sleep(0.01)
        print(len(set(pool.map(time.sleep, [0.05] * 4))), pool.submit(os.getppid).result())
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a pool."""
    (tmp_path / "pool.py").write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, str(tmp_path / "pool.py")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        yield parent
        parent.kill()


def test_workers_and_their_server_end_with_a_killed_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout
    processes = parent.stdout.readline().split()
    parent.kill()
    deadline = time.monotonic() + 30
    while any(_lives(process) for process in processes):
        assert time.monotonic() < deadline, "an orphan is left"
        time.sleep(0.02)


def _lives(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_pool_works_on_after_signals_to_all_processes(parent: subprocess.Popen[str]) -> None:
    """Ctrl-C, and the SIGTERM of Slurm: it is the parent that finishes."""
    assert parent.stdout
    _, server = parent.stdout.readline().split()
    os.killpg(parent.pid, signal.SIGTERM)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout.read().splitlines()[-1] == f"1 {server}"
    assert parent.wait() == 0
