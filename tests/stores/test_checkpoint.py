"""Checkpoints: round trip, what is refused, and nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import SsrError, UsageError
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from tests.fixtures.traps import Trap

TENSORS = {
    "heads.weight": torch.randn(3, 4),
    "turned": torch.randn(3, 4).T,
    "part": torch.arange(20)[::2],
    "scalar": torch.tensor(7),
    "empty": torch.empty(0),
    "half": torch.randn(5).half(),
    "flags": torch.tensor([True, False]),
    "trained": torch.nn.Parameter(torch.randn(2)),
    "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
}
NOTE = {"owner": "abc", "nested": {"list": [1, 2.5, None, "Tür"]}, "flag": True}


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "heads.safetensors"
    write_checkpoint(path, TENSORS, NOTE)
    tensors, note = read_checkpoint(path, "--ckpt")
    assert note == NOTE
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        torch.testing.assert_close(tensors[name], expected.detach(), rtol=0, atol=0, equal_nan=True)
        assert not tensors[name].requires_grad
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_equal_content_gives_equal_bytes(tmp_path):
    write_checkpoint(tmp_path / "a", TENSORS, {"b": 1, "a": 2})
    write_checkpoint(tmp_path / "b", TENSORS, {"a": 2, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_tensors(tmp_path):
    write_checkpoint(tmp_path / "none.safetensors", {}, {})
    assert read_checkpoint(tmp_path / "none.safetensors", "--ckpt") == ({}, {})


def sprung(path: Path) -> Trap:
    return Trap(path.with_name("sprung"))


def _cut(path: Path) -> None:
    write_checkpoint(path, TENSORS, NOTE)
    path.write_bytes(path.read_bytes()[:-3])


def _noted(metadata: dict[str, str] | None):
    def make(path: Path) -> None:
        save_file({"w": torch.zeros(1)}, path, metadata=metadata)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "no checkpoint at", id="missing"),
        pytest.param(Path.mkdir, "no checkpoint at", id="folder"),
        pytest.param(Path.touch, "not a readable .safetensors", id="empty"),
        pytest.param(lambda path: torch.save({"trap": sprung(path)}, path), "not a readable .safetensors", id="torch.save"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps(sprung(path))), "not a readable .safetensors", id="pickle"),
        pytest.param(_cut, "not a readable .safetensors", id="cut off"),
        pytest.param(lambda path: path.write_text("weights\n" * 9), "not a readable .safetensors", id="text"),
        pytest.param(_noted({"note": "{"}), "not a readable .safetensors", id="broken note"),
        pytest.param(_noted(None), "not written by ssr", id="no metadata"),
        pytest.param(_noted({"format": "pt"}), "not written by ssr", id="no note"),
        pytest.param(_noted({"note": "[1]"}), "not written by ssr", id="note is a list"),
        pytest.param(_noted({"note": '"text"'}), "not written by ssr", id="note is text"),
        pytest.param(_noted({"note": "3"}), "not written by ssr", id="note is a number"),
        pytest.param(_noted({"note": "null"}), "not written by ssr", id="note is null"),
    ],
)
@pytest.mark.parametrize("name", ["heads.safetensors", "heads.pt"])
def test_refused(tmp_path, make, message, name):
    path = tmp_path / name
    make(path)
    with pytest.raises(UsageError) as caught:
        read_checkpoint(path, "--ckpt")
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint.startswith("--ckpt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_another_bit_anywhere_is_noticed(tmp_path, place):
    path = tmp_path / "heads.safetensors"
    write_checkpoint(path, {"weight": torch.randn(40, 40)}, NOTE)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged.*remove it"):
        read_checkpoint(path, "--ckpt")


def test_files_without_a_checksum_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"note": "{}"})
    assert read_checkpoint(tmp_path / "old.safetensors", "--ckpt")[1] == {}


def test_a_full_disk_is_one_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SsrError, match=r"cannot write .*heads.safetensors: No space left on device \(free disk space"):
        write_checkpoint(tmp_path / "heads.safetensors", TENSORS, NOTE)
    assert list(tmp_path.iterdir()) == []
