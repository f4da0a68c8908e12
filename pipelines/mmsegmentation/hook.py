"""What happens beside mmengine's training: progress, curves, state, and a model that `ssr predict` reads."""

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
    """Told of a training by each of its processes."""

    def stops(self) -> bool:
        """Whether all processes, each of which asks, were asked to stop."""

    def stepped(self, iteration: int, mean: dict[str, Any] | None) -> None:
        """A step is done; with the means of the last few, now and then."""

    def save(self, runner: Runner, iteration: int) -> None:
        """Time to save."""

    def validated(self, runner: Runner, iteration: int, miou: float) -> None:
        """The validation split was scored."""


class TrainingHook(Hook):  # type: ignore[misc]
    """Speaks to a `Watcher`.

    Args:
        curves: Gets a line every few steps.
        watcher: Told of everything.
        options: When to save and to validate.

    Attributes:
        began: Whether the network stands and steps are taken.
    """

    priority = "LOWEST"

    def __init__(self, curves: Curves, watcher: Watcher, options: RetrainOptions) -> None:
        self.curves, self.watcher, self.options = curves, watcher, options
        self.began = False
        self._random: dict[str, Any] | None = None
        self._undrawn: torch.Tensor | None = None

    def before_train(self, runner: Runner) -> None:
        """All is set up."""
        self.began = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the random state until the images of earlier steps are passed over."""
        self._random = checkpoint.get("random")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Go on as if the training had not been stopped."""
        if self._random is not None:
            restore_random(self._random)
            self._random = None
            every = self.options.validate_every
            if (
                runner.val_loop is not None and every and runner.iter % every == 0
            ):  # validation runs after the save and consumes RNG state
                runner.val_loop.run()
                runner.model.train()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count the step, note its losses, save now and then."""
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
        """Keep the random state, but for the training's first validation.

        A data loader that is new draws a number, one that persists draws none. A resumed training's is new whenever it is
        resumed, so that without this its dropout would differ from that of an undisturbed training.
        """
        self._undrawn = torch.get_rng_state() if runner.iter > self.options.validate_every else None

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Hand the score on."""
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
