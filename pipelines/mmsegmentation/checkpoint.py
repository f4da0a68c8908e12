"""The state of a training in mmengine's form, but with tensors and plain values alone, so that reading it runs no pickled code.

mmengine's own checkpoints contain objects (its message hub, numpy scalars) that ``torch.load(weights_only=True)`` refuses, and
they are not written atomically. Resuming needs neither: `ssr` keeps the curves, and the rest is numbers.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner

from pipelines.errors import SsrError
from pipelines.stores.files import atomic_path

NO_MESSAGES: dict[str, dict[str, Any]] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}


def write_state(path: Path, runner: Runner, iteration: int, owner: str, waiting: list[dict[str, Any]]) -> None:
    """Write everything that `Runner.resume` needs, atomically.

    Args:
        path: The file.
        runner: Runner after step ``iteration``.
        iteration: Number of steps taken.
        owner: Digest of the settings that the training belongs to.
        waiting: Values of the steps whose means are not in the curves yet.
    """
    schedulers = runner.param_schedulers
    state = {
        "meta": {"epoch": 0, "iter": iteration, "seed": runner.seed, "owner": owner, "waiting": waiting},
        "state_dict": module_of(runner).state_dict(),
        "optimizer": runner.optim_wrapper.state_dict(),
        "param_schedulers": [_plain(scheduler.state_dict()) for scheduler in schedulers],
        "message_hub": NO_MESSAGES,
        "random": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None},
    }
    content = io.BytesIO()  # in memory first: torch.save embeds the file name, and its error for a full disk is unreadable
    torch.save(state, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def restore_random(state: Mapping[str, Any]) -> None:
    """Restore the random state of `write_state`, so that dropout continues. All processes use that of the first one."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def read_meta(path: Path) -> dict[str, Any] | None:
    """Return the facts that a state stores on itself; None if there is no state.

    Raises:
        SsrError: The file was not written by `write_state`.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
        meta = state["meta"]
        if not isinstance(meta, dict) or not {"state_dict", "optimizer", "param_schedulers", "message_hub"} <= state.keys():
            raise ValueError
        int(meta["iter"])
    except Exception as error:  # torch.load raises many kinds of errors for bad bytes
        raise SsrError(f"{path} is no state of a retraining, or damaged", "--resume never starts it over") from error
    return meta


def module_of(runner: Runner) -> torch.nn.Module:
    """Return the network without the wrapper for several processes."""
    model = runner.model
    return model.module if hasattr(model, "module") else model  # type: ignore[no-any-return]


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, texts and lists of them; a scheduler makes its other options again."""
    return {key: value for key, value in state.items() if isinstance(value, int | float | str | list | tuple | type(None))}
