"""A process that has imported everything and forks a child for each run of ``ssr``: a run costs what its stage costs.

It reads one JSON object a line and answers with one: ``start`` forks a run and gives its process id; ``wait`` waits for it;
``mmsegmentation`` imports what ``ssr retrain`` needs; ``stop`` ends it without an answer.
Each run is a session of its own, so that the workers it leaves behind can be found. A run may be slowed down, and may log its
events and kill itself at one of them: see `Events`. Its processes are forks, too, unless they shall be fresh.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

from tests.fixtures.forked_processes import (
    end_with,
    fork_processes,
    keep_memory_shared,
    name_semaphores,
    start_processes_afresh,
)

PART_IMAGES = 4  # parts are committed every few images, as they are every 64 of a large set
POOLS = ("superpixels", "refine", "masks", "predict")  # commands with worker processes
SAVE_EVERY = 4  # and so are the states of `ssr align`


def prepare(clip_config: str) -> None:
    """Import what runs need, and make saves as frequent as a small set needs them."""
    import open_clip
    import sklearn.cluster
    import sklearn.metrics  # noqa: F401  # imported late, and so in each child
    import torch
    import torch._dynamo  # the optimiser would load it in each child

    draw_plainly()
    fork_processes()
    name_semaphores(f"ssr-tests-{os.getpid()}")
    open_clip.add_model_config(clip_config)
    torch.set_num_threads(1)
    for name in ("superpixels", "align", "cams", "refine", "masks", "train", "predict", "eval", "status", "tag"):
        importlib.import_module(f"ssr_cli.commands.{name}")
    for name in ("superpixels", "align", "cams", "refine", "masks", "train", "predict", "evaluate", "status", "tag"):
        importlib.import_module(f"pipelines.stages.{name}")
    from pipelines.datasets import voc  # noqa: F401
    from pipelines.stages.align import stage as align
    from pipelines.stores.array_store import ArrayWriter

    align.SAVE_EVERY = SAVE_EVERY
    original = ArrayWriter.__init__
    at = list(inspect.signature(original).parameters).index("part_images")

    def small_parts(self: ArrayWriter, *args: Any, **options: Any) -> None:
        if len(args) < at:
            options.setdefault("part_images", PART_IMAGES)
        original(self, *args, **options)

    ArrayWriter.__init__ = small_parts  # type: ignore[method-assign]
    keep_memory_shared()


def draw_plainly() -> None:
    """Runs draw no figures."""
    from matplotlib.figure import Figure
    from PIL import Image

    from tests.fixtures.plain_figures import plain

    Figure.savefig = plain  # type: ignore[method-assign]
    Image.init()


def prepare_mmsegmentation() -> None:
    """Import what retraining needs."""
    from pipelines.mmsegmentation.imports import import_mmsegmentation

    import_mmsegmentation()
    importlib.import_module("ssr_cli.commands.retrain")
    importlib.import_module("pipelines.stages.retrain.stage")
    importlib.import_module("pipelines.mmsegmentation.training")
    keep_memory_shared()


class Events:
    """Logs a run's events, a line each, and kills it with SIGKILL at the n-th of a kind.

    ``file NAME`` before and ``did NAME`` after a rename or a removal below ``folder``, which both are of kind file;
    ``step N`` before a training step (of retraining: after it); ``array STORE ID`` and ``mask ID`` before one is made.
    """

    def __init__(self, log: str, folder: str, deaths: dict[str, int]) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.folder, self.deaths = folder + os.sep, dict(deaths)

    def at(self, kind: str, *words: object) -> None:
        """Log an event and maybe die of it."""
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())
        self.deaths[kind] = self.deaths.get(kind, 0) - 1
        if self.deaths[kind] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Put events around what the run calls."""
        from pipelines.stages.refine import target
        from pipelines.stores.array_store import ArrayWriter
        from pipelines.training.alignment import AlignmentTrainer
        from pipelines.training.segmentation import SegmentationTrainer

        for name in ("replace", "unlink"):
            setattr(os, name, self._moving(getattr(os, name)))
        for trainer, name in ((AlignmentTrainer, "_step"), (SegmentationTrainer, "step")):
            self._before(trainer, name, lambda trainer, *_: ("step", trainer.iteration))
        self._before(ArrayWriter, "add", lambda writer, image_id, *_: ("array", writer.path.stem, image_id))
        self._before(target, "make_mask", lambda job, *_: ("mask", job.image_id))
        if (retrain := sys.modules.get("pipelines.stages.retrain.stage")) is not None:
            stepped = retrain.Outputs.stepped

            def after(training: Any, iteration: int, *rest: Any) -> None:
                stepped(training, iteration, *rest)
                self.at("step", "step", iteration)

            retrain.Outputs.stepped = after

    def _moving(self, function: Any) -> Any:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            place = os.fspath(rest[0] if rest else path)
            if not str(place).startswith(self.folder) or not os.path.lexists(path):
                return function(path, *rest, **options)
            self.at("file", "file", Path(place).name)
            result = function(path, *rest, **options)
            self.at("file", "did", Path(place).name)
            return result

        return call

    def _before(self, owner: Any, name: str, words: Any) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            event = words(*args)
            self.at(event[0], *event)
            return function(*args, **options)

        setattr(owner, name, call)


def slow_down(seconds: float) -> None:
    """Pause at each image or step: leaves time for something to happen to a run over a small set."""
    from pipelines.stages import evaluate
    from pipelines.stores.array_store import ArrayWriter
    from pipelines.training.alignment import AlignmentTrainer
    from pipelines.training.segmentation import SegmentationTrainer

    def paused(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            time.sleep(seconds)
            return function(*args, **options)

        return call

    slow: list[tuple[Any, str]] = [(evaluate, "confusion_counts")]
    slow += [(ArrayWriter, "add"), (AlignmentTrainer, "_step"), (SegmentationTrainer, "step")]
    if (retrain := sys.modules.get("pipelines.stages.retrain.stage")) is not None:
        slow.append((retrain.Outputs, "stepped"))
    for kind, name in slow:
        setattr(kind, name, paused(getattr(kind, name)))


def child(job: dict[str, Any]) -> NoReturn:
    """One run of the real command; never returns."""
    os.setsid()
    out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(source, target)

    def change() -> None:
        if job.get("fresh"):
            start_processes_afresh()
        elif job["argv"][0] in POOLS:
            forkserver.ensure_running()  # it knows nothing of the changes
        if job.get("pause"):
            slow_down(job["pause"])
        for place, value in job.get("set", {}).items():
            module, _, name = place.rpartition(".")
            setattr(importlib.import_module(module), name, (lambda *_: None) if value is None else value)
        if job.get("events"):
            Events(**job["events"]).watch()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    end_as_command(job["argv"], change)


def ssr() -> None:
    """The command, with the words of ``sys.argv``."""
    from ssr_cli.app import main

    main()


def end_as_command(argv: list[str], change: Callable[[], None], program: Callable[[], None] = ssr) -> NoReturn:
    """Make some changes, run the real program, and end this process with its exit code."""

    def changed() -> None:
        change()
        sys.argv = [program.__name__, *argv]
        program()

    end_with(changed)


def wait(pid: int, seconds: float) -> int | None:
    """Exit code, negative after a signal; None if it still runs."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def serve() -> None:
    """Answer until told to stop, or until the input ends."""
    prepare(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    answers = os.fdopen(os.dup(1), "w")
    print(json.dumps({"ready": str(Path(sys.modules["pipelines"].__file__ or "").parent)}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "stop":
            break
        if job["do"] == "mmsegmentation":
            prepare_mmsegmentation()
            answer: dict[str, Any] = {}
        elif job["do"] == "start":
            pid = os.fork()
            if pid == 0:
                os.close(answers.fileno())  # whoever waits for the end of the answers waits for nothing else
                child(job)
            answer = {"pid": pid}
        else:
            answer = {"code": wait(job["pid"], job["seconds"])}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # at once, as its children do


if __name__ == "__main__":  # workers of process pools import this file, too
    serve()
