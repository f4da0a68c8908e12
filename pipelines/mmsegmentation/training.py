"""Running mmengine's Runner on a config: quietly, on one device or many, from where it stood."""

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
    """Train as a config says, to its last step, then validate.

    Args:
        config_file: Written by `ssr retrain`; it is run as Python.
        work: mmengine's logs go there.
        hook: Speaks and saves in place of mmengine's own.
        state: To go on from, or None.
        launcher: ``none``, or ``pytorch`` for processes that are joined already.
        device: Where mmengine trains.
        to_train: Whether steps are left; without any, no image of earlier ones is read again.
        to_validate: Asked after the last step: whether its model is still to be scored.

    Returns:
        The runner behind its last step; None if there was nothing to do.

    Raises:
        SsrError: mmsegmentation cannot build what the config describes.
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
        except Exception as error:  # a hub that is not there, weights of another backbone, a config file's own mistakes
            if hook.began:
                raise
            found = f"{type(error).__name__}: {error}".splitlines()[0]
            hint = "--backbone-weights FILE.safetensors or none, or another --model"
            raise SsrError(f"mmsegmentation cannot set this network up: {found}", hint) from error
        if runner.val_loop is not None and to_validate():
            runner.val()
    return runner


def _runnable(config_file: Path, work: Path, state: Path | None, launcher: str, device: torch.device) -> Config:
    """The config, with what belongs to this run alone."""
    found = Config.fromfile(config_file)
    found.work_dir = str(work)
    found.launcher = launcher
    found.load_from = str(state) if state else None
    found.resume = state is not None
    found.default_hooks = {**found.get("default_hooks", {}), "checkpoint": None}  # the state is ours to write
    found.visualizer = {"type": "Visualizer", "vis_backends": None, "name": "retrain"}
    if device.type == "cpu":
        found.pop("sync_bn", None)
        found.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False}
    return found


class _Nowhere(io.TextIOBase):
    """A stream that is never closed: a later training may be given this one's logger."""

    def write(self, text: str) -> int:
        return len(text)


_NOWHERE = _Nowhere()


@contextmanager
def _quiet() -> Iterator[None]:
    """The logger of mmengine keeps the stream that it finds; all it says goes to a file besides."""
    with redirect_stdout(_NOWHERE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
