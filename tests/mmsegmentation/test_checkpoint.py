"""The state of a training: plain tensors and numbers, read without running anything, or refused in one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mmengine")

import torch
from torch import Tensor, nn

from pipelines.errors import SsrError
from pipelines.mmsegmentation.checkpoint import read_meta, restore_random, write_state
from tests.fixtures.traps import Trap


class Wrapped(nn.Module):
    """As a network in a training of several processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs)


def runner(wrapped: bool = False, steps: int = 2) -> Any:
    """A few steps into a training, as much of a runner as a state needs."""
    from mmengine.optim import LinearLR, OptimWrapper, PolyLR

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
    schedulers = [LinearLR(wrapper, start_factor=0.1, by_epoch=False, end=3), PolyLR(wrapper, by_epoch=False, begin=3, end=9)]
    made = SimpleNamespace(
        model=Wrapped(model) if wrapped else model, optim_wrapper=wrapper, param_schedulers=schedulers, seed=3
    )
    for _ in range(steps):
        step(made)
    return made


def step(training: Any) -> list[float]:
    """Take a step; returns what it was taken with and what came of it."""
    rates = training.optim_wrapper.get_lr()["lr"]
    training.optim_wrapper.update_params(training.model(torch.rand(4, 2)).square().mean())
    for scheduler in training.param_schedulers:
        scheduler.step()
    return [*rates, *(one.sum().item() for one in training.model.state_dict().values())]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write_state(tmp_path / "state.pth", runner(), 2, "mine", [{"loss": 0.5}])
    return tmp_path / "state.pth"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path, wrapped: bool) -> None:
    unbroken = runner(wrapped)
    write_state(tmp_path / "new/state.pth", unbroken, 2, "mine", [])
    expected = [step(unbroken) for _ in range(4)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state.pth"]
    assert read_meta(tmp_path / "new/state.pth") == {"epoch": 0, "iter": 2, "seed": 3, "owner": "mine", "waiting": []}
    found = torch.load(tmp_path / "new/state.pth", weights_only=True)
    resumed = runner(steps=0)  # by the network's own names, wrapped or not
    resumed.model.load_state_dict(found["state_dict"])
    resumed.optim_wrapper.load_state_dict(found["optimizer"])
    for scheduler, kept in zip(resumed.param_schedulers, found["param_schedulers"], strict=True):
        scheduler.load_state_dict(kept)
    restore_random(found["random"])
    assert [step(resumed) for _ in range(4)] == expected
    assert len({rate for rate, *_ in expected}) > 2  # rates rise, then fall


def test_no_state(tmp_path: Path) -> None:
    assert read_meta(tmp_path / "state.pth") is None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("zipped", [False, True])
def test_foreign_code_does_not_run(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path = tmp_path / "state.pth"
    content = {"meta": {"iter": 3, "owner": Trap(tmp_path / "ran")}}
    if zipped:
        torch.save(content, path, pickle_protocol=protocol or 1)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(SsrError, match=r"no state of a retraining, or damaged \(--resume never") as caught:
        read_meta(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"no {key}": lambda state, key=key: state.pop(key) for key in ("meta", "state_dict", "optimizer", "param_schedulers")},
    "no message hub": lambda state: state.pop("message_hub"),
    "no iteration": lambda state: state["meta"].pop("iter"),
    "iteration is a word": lambda state: state["meta"].update(iter="many"),
    "iteration is nothing": lambda state: state["meta"].update(iter=None),
    "iteration is endless": lambda state: state["meta"].update(iter=float("inf")),
    "iteration is no number": lambda state: state["meta"].update(iter=float("nan")),
    "meta is a list": lambda state: state.update(meta=[2]),
    "meta is a tensor": lambda state: state.update(meta=torch.zeros(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_lacks_something_is_one_line(state: Path, change: str) -> None:
    content = torch.load(state, weights_only=True)
    CHANGES[change](content)
    torch.save(content, state)
    with pytest.raises(SsrError, match="no state of a retraining, or damaged") as caught:
        read_meta(state)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [[1, 2], "text", None])
def test_another_content_is_one_line(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "state.pth")
    with pytest.raises(SsrError, match="no state of a retraining, or damaged"):
        read_meta(tmp_path / "state.pth")


@pytest.mark.parametrize("left", [0, 1, 2, 3, 30, 0.3, 0.9, -1])
def test_a_truncated_state_is_one_line(state: Path, left: float) -> None:
    whole = state.read_bytes()
    state.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    with pytest.raises(SsrError, match="no state of a retraining, or damaged"):
        read_meta(state)
