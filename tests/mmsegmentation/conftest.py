"""What tests of retrained networks share: a network as a file, and no way out to the network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipelines.mmsegmentation.retrained import write_retrained

from .networks import DESIGN, random_network


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Whoever wants out fails, and says so."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def model(tmp_path) -> Path:
    write_retrained(tmp_path / "retrained.safetensors", random_network(DESIGN), DESIGN, "pseudo", 17)
    return tmp_path / "retrained.safetensors"
