"""Joining processes: the variables of torchrun and Slurm, and one line where they are missing."""

from __future__ import annotations

import os

import pytest
import torch

from pipelines.errors import UsageError
from pipelines.mmsegmentation.launch import launched
from pipelines.training.processes import Processes

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # put back whatever a launch sets
        monkeypatch.delenv(name)


@pytest.mark.parametrize("launcher", ["auto", "none"])
def test_one_process_by_default(launcher: str) -> None:
    with launched(launcher, CPU) as found:
        assert found == (Processes(0, 1), CPU)


def test_a_world_of_one_is_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")  # containers export it
    with launched("auto", CPU) as found:
        assert found == (Processes(0, 1), CPU)


def test_slurm_is_told_in_torchruns_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1")
    with launched("slurm", CPU) as (processes, device):
        assert (processes, device) == (Processes(0, 1), CPU)
        assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == ["0", "1", "0", "10.0.0.1"]


@pytest.mark.parametrize(("launcher", "name"), [("torchrun", "WORLD_SIZE"), ("slurm", "SLURM_PROCID")])
def test_nothing_to_join_is_one_line(launcher: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"no processes of {launcher} to join: {name} is not set"), launched(launcher, CPU):
        pass


def test_a_world_without_a_rank_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK is not set"), launched("auto", CPU):
        pass
