"""Runs mmengine's Runner on a config, without output, on one device or many, from the last saved state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from pipelines.errors import SsrError
from pipelines.mmsegmentation.hook import TrainingHook


def run(  # noqa: PLR0913 - what a process of a training differs in
    config_file: Path,
    work: Path,
    hook: TrainingHook,
    state: Path | None,
    launcher: str,
    device: torch.device,
    to_train: bool,
    to_validate: Callable[[], bool],
) -> Runner | None:
    """Train to the last step of a config, then validate.

    Args:
        config_file: Config written by `ssr retrain`; it is run as Python.
        work: Folder of mmengine's logs.
        hook: Hook that reports and saves in place of mmengine's own hooks.
        state: State to resume from, or None.
        launcher: ``none``, or ``pytorch`` for processes that are joined already.
        device: Device of mmengine.
        to_train: Whether steps are left; if not, no image of earlier steps is read again.
        to_validate: Called after the last step; returns whether its model is still to be scored.

    Returns:
        The runner after its last step; None if there was nothing to do.

    Raises:
        SsrError: mmsegmentation cannot build the network of the config.
    """
    if not to_train and not to_validate():
        return None
    work.mkdir(parents=True, exist_ok=True)
    with _quiet():
        try:
            runner = Runner.from_cfg(_runnable(config_file, work, state, launcher, device))
            runner.register_hook(hook)
            if to_train:
                runner.train()
        except SsrError:
            raise
        except Exception as error:  # a hub that cannot be reached, weights of another backbone, faults of a config file
            if hook.began:
                raise
            found = f"{type(error).__name__}: {error}".splitlines()[0]
            hint = "--backbone-weights FILE.safetensors or none, or another --model"
            raise SsrError(f"mmsegmentation cannot set this network up: {found}", hint) from error
        if runner.val_loop is not None and to_validate():
            runner.val()
        _end_loaders(runner, to_train)
    return runner


def _end_loaders(runner: Runner, trained: bool) -> None:
    """Drop the data loaders, which ends their workers at once.

    The garbage collector would end their queues first, and then wait 5 s for workers that no message reaches any more.
    """
    if trained:
        del runner.train_loop.dataloader_iterator, runner.train_loop.dataloader
    if runner.val_loop is not None:
        del runner.val_loop.dataloader


def _runnable(config_file: Path, work: Path, state: Path | None, launcher: str, device: torch.device) -> Config:
    """Return the config with the settings of this run."""
    found = Config.fromfile(config_file, format_python_code=False)  # mmengine's own copy of it; formatting takes a second
    found.work_dir = str(work)
    found.launcher = launcher
    found.load_from = str(state) if state else None
    found.resume = state is not None
    found.default_hooks = {**found.get("default_hooks", {}), "checkpoint": None}  # `TrainingHook` writes the state
    found.visualizer = {"type": "Visualizer", "vis_backends": None, "name": "retrain"}
    if device.type == "cpu":
        found.pop("sync_bn", None)
        found.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}
    return found


class _Nowhere(io.TextIOBase):
    """A stream that is never closed, because a later training may get the logger that holds it."""

    def write(self, text: str) -> int:
        return len(text)


_NOWHERE = _Nowhere()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence mmengine's logger, which keeps the stream that it finds; its lines also go to a file."""
    with redirect_stdout(_NOWHERE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
