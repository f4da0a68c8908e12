"""A hook of mmengine's training, for progress, curves, state, and a model that `ssr predict` reads."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pipelines.execution.interruption import refuse_interrupted
from pipelines.mmsegmentation.checkpoint import restore_random
from pipelines.options.retrain import RetrainOptions
from pipelines.training.curves import Curves


class Watcher(Protocol):
    """The receiver of a training's events, in each of its processes."""

    def stops(self) -> bool:
        """Return whether any process was told to stop; every process calls this."""

    def stepped(self, iteration: int, mean: dict[str, Any] | None) -> None:
        """Count a step, with the means of the last few steps in intervals."""

    def save(self, runner: Runner, iteration: int) -> None:
        """Save the training."""

    def validated(self, runner: Runner, iteration: int, miou: float) -> None:
        """Store the score of the validation split."""


class TrainingHook(Hook):  # type: ignore[misc]
    """Forwards mmengine's events to a `Watcher`.

    Args:
        curves: Curves, which get a line every few steps.
        watcher: Receiver of the events.
        options: Intervals of saving and validation.

    Attributes:
        began: Whether the network is built and steps are taken.
    """

    priority = "LOWEST"

    def __init__(self, curves: Curves, watcher: Watcher, options: RetrainOptions) -> None:
        self.curves, self.watcher, self.options = curves, watcher, options
        self.began = False
        self._random: dict[str, Any] | None = None
        self._undrawn: torch.Tensor | None = None

    def before_train(self, runner: Runner) -> None:
        """Record that everything is set up."""
        self.began = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the random state until the images of earlier steps are skipped."""
        self._random = checkpoint.get("random")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Restore the random state, so that a resumed training equals an uninterrupted one."""
        if self._random is not None:
            restore_random(self._random)
            self._random = None
            every = self.options.validate_every
            if (
                runner.val_loop is not None and every and runner.iter % every == 0
            ):  # validation runs after the save and consumes random numbers
                runner.val_loop.run()
                runner.model.train()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count the step, note its losses, and save in intervals."""
        iteration = runner.iter + 1
        last = iteration == self.options.iterations
        due = last or iteration % self.options.save_every == 0
        mean = self.curves.add(_losses(outputs or {}) | _learning_rates(runner), iteration, end=due)
        self.watcher.stepped(iteration, mean)
        stop = self.watcher.stops()
        if due or stop:
            self.watcher.save(runner, iteration)
        if stop and not last:
            refuse_interrupted()

    def before_val_epoch(self, runner: Runner) -> None:
        """Keep the random state, except at the training's first validation.

        A new data loader draws a random number, and a persistent one draws none. Each resumed run has a new one, so that its
        dropout would otherwise differ from that of an uninterrupted training.
        """
        self._undrawn = torch.get_rng_state() if runner.iter > self.options.validate_every else None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Pass the score to the watcher."""
        if self._undrawn is not None:
            torch.set_rng_state(self._undrawn)
        self.watcher.validated(runner, runner.iter, float((metrics or {})["mIoU"]) / 100)


def _losses(outputs: dict[str, Any]) -> dict[str, float]:
    found = {"segmentation": 0.0, "auxiliary": 0.0}
    for key, value in outputs.items():
        if "loss" in key and "." in key:
            found["segmentation" if key.startswith("decode") else "auxiliary"] += float(value)
    return found


def _learning_rates(runner: Runner) -> dict[str, float]:
    rates = runner.optim_wrapper.get_lr()["lr"]
    return {"learning_rate": max(rates), "backbone_learning_rate": min(rates)}
