"""The weights folder, and a hub that answers, is silent, or lacks the file: a server of our own, no network."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import open_clip
import pytest
import timm
import torch
from huggingface_hub import close_session, constants
from open_clip import pretrained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.encoders import weights_folder as module
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, build_dino, fetch_clip, fetch_dino, resolve_clip, resolve_dino
from pipelines.encoders.weights_folder import clip_release, dino_release, weights_folder
from pipelines.errors import SsrError, UsageError

State = dict[str, Tensor]
QUICK = "tiny-clip-quickgelu"
CLIP = ("ViT-B-16-quickgelu", "openai")
DINO = "vit_small_patch16_224.dino"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder."""
    path = tmp_path / "weights"
    path.mkdir()
    monkeypatch.setenv("SSR_WEIGHTS", str(path))
    return path


@pytest.fixture
def released(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the tiny CLIP a tag ``made`` with a mean of its own."""
    tag = {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    monkeypatch.setitem(pretrained._PRETRAINED, QUICK, {"made": tag})


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, files: dict[str, Path], asked: list[str], *args: object) -> None:
        self.files, self.asked = files, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        path = self.files.get(self.path)
        self.send_response(200 if path else 404)
        self.send_header("X-Error-Code", "EntryNotFound") if path is None else None
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"tag"')
        self.send_header("Content-Length", str(path.stat().st_size) if path else "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if path := self.files.get(self.path):
            self.wfile.write(path.read_bytes())

    def log_message(self, *_: object) -> None:
        pass


Hub = Callable[[dict[str, Path]], tuple[list[str], Callable[[], None]]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Starts a hub of some files with an empty cache; gives the list of what it is asked for, and what shuts it down."""
    servers: list[ThreadingHTTPServer] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def stop() -> None:
        for server in servers:
            server.shutdown()
            server.server_close()
        servers.clear()
        close_session()

    def start(files: dict[str, Path]) -> tuple[list[str], Callable[[], None]]:
        asked: list[str] = []
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files, asked)))
        Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = f"http://127.0.0.1:{servers[-1].server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        return asked, stop

    yield start
    stop()


# --- the folder


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSR_WEIGHTS", "~/elsewhere")
    assert weights_folder() == tmp_path / "elsewhere"
    for unset in (partial(monkeypatch.setenv, "SSR_WEIGHTS", ""), partial(monkeypatch.delenv, "SSR_WEIGHTS")):
        unset()
        assert weights_folder() == tmp_path / ".cache/ssr/weights"
    assert clip_release(*CLIP).place == tmp_path / ".cache/ssr/weights/ViT-B-16-quickgelu.openai.safetensors"
    assert dino_release(DINO).place.name == f"{DINO}.safetensors"
    assert clip_release("ViT-B/16", "laion2b_s34b_b88k").place.parent == tmp_path / ".cache/ssr/weights"
    assert not (tmp_path / ".cache").exists()


@pytest.mark.usefixtures("released")
def test_clip_of_the_folder_is_a_local_file(folder: Path, clip_file: Path, clip_state: State) -> None:
    assert resolve_clip(QUICK, "made").path is None
    place = Path(shutil.copy(clip_file, folder / f"{QUICK}.made.safetensors"))
    weights = resolve_clip(QUICK, "made")
    assert weights.path == place
    assert weights.provenance() == {"model": QUICK, "weights": f"sha256:{hashlib.sha256(clip_file.read_bytes()).hexdigest()}"}
    fetch_clip(weights)
    loaded = build_clip(weights)
    assert loaded.has_text
    assert torch.equal(loaded.model.state_dict()["visual.proj"], clip_state["visual.proj"])
    encoder = ClipEncoder(loaded, torch.device("cpu"))
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # the tag's, as from the hub
    place.write_bytes(clip_file.read_bytes()[:-7])
    with pytest.raises(SsrError, match=f"cannot read weights {re.escape(str(place))}"):
        build_clip(resolve_clip(QUICK, "made"))


@pytest.mark.usefixtures("released")
def test_activation_of_a_file_of_the_folder_is_checked_by_its_tag(folder: Path, clip_file: Path) -> None:
    pretrained._PRETRAINED["tiny-clip"] = pretrained._PRETRAINED[QUICK]
    try:
        shutil.copy(clip_file, folder / "tiny-clip.made.safetensors")
        with pytest.raises(UsageError, match="trained with QuickGELU, model tiny-clip computes GELU"):
            build_clip(resolve_clip("tiny-clip", "made"))
    finally:
        del pretrained._PRETRAINED["tiny-clip"]


@pytest.mark.usefixtures("released")
def test_a_file_given_by_flag_wins_over_the_folder(folder: Path, tmp_path: Path, clip_file: Path, dino_file: Path) -> None:
    (folder / f"{QUICK}.made.safetensors").write_bytes(b"not looked at")
    (folder / "test_vit.safetensors").write_bytes(b"not looked at")
    assert resolve_clip(QUICK, str(clip_file)).path == clip_file
    assert resolve_dino("test_vit", str(dino_file)).path == dino_file


def test_dino_of_the_folder_is_a_local_file(folder: Path, dino_file: Path) -> None:
    shutil.copy(dino_file, folder / "test_vit.safetensors")
    weights = resolve_dino("test_vit", "hub")
    assert weights.provenance()["weights"] == f"sha256:{hashlib.sha256(dino_file.read_bytes()).hexdigest()}"
    assert torch.equal(build_dino(weights).state_dict()["norm.weight"], load_file(dino_file)["norm.weight"])


def test_a_folder_of_that_name_is_no_file(folder: Path) -> None:
    (folder / "test_vit.safetensors").mkdir()
    assert resolve_dino("test_vit", "hub").path is None


# --- a silent hub


def _messages() -> dict[str, tuple[Callable[[], object], str]]:
    clip = resolve_clip(*CLIP)
    dino = resolve_dino(DINO, "hub")
    both = {
        "clip": "cannot fetch CLIP ViT-B-16-quickgelu / openai: {error}; bring open_clip_model.safetensors (599 MB) of "
        "timm/vit_base_patch16_clip_224.openai and put it at {folder}/ViT-B-16-quickgelu.openai.safetensors, "
        "or give --clip-pretrained FILE",
        "dino": f"cannot fetch DINO {DINO}: {{error}}; bring model.safetensors (87 MB) of timm/{DINO} "
        f"and put it at {{folder}}/{DINO}.safetensors, or give --dino-pretrained FILE",
        "pickle": "cannot fetch CLIP ViTamin-S / datacomp1b: {error}; bring pytorch_model.bin (250 MB) of "
        "jienengchen/ViTamin-S and give --clip-pretrained FILE",
    }
    calls: dict[str, Callable[[], object]] = {
        "clip": lambda: build_clip(clip),
        "dino": lambda: build_dino(dino),
        "pickle": lambda: module.clip_release("ViTamin-S", "datacomp1b").fetch(),
    }
    return {name: (calls[name], both[name]) for name in both}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two tries that a library asks for; none of them is made."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("which", ["clip", "dino", "pickle"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_silent_hub_is_one_message_within_seconds(
    hub: Hub, folder: Path, waited: list[float], which: str, offline: bool
) -> None:
    _, stop = hub({})
    stop()
    call, message = _messages()[which]
    constants.HF_HUB_OFFLINE = offline  # the fixture puts it back
    error = "HF_HUB_OFFLINE is set" if offline else "[Errno 111] Connection refused"
    with pytest.raises(SsrError) as caught:
        call()
    assert sum(waited) < 3  # seconds: nobody waits for a hub that does not answer
    assert str(caught.value) == message.format(error=error, folder=folder)
    assert constants.HF_HUB_OFFLINE is offline


def test_size_is_that_of_the_parameters(tiny_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    twin = sum(p.numel() for p in timm.create_model("vit_tiny_patch16_224.augreg_in21k", num_classes=21843).parameters())
    hub({})[1]()
    with pytest.raises(SsrError, match=rf"bring model\.safetensors \({-(-twin * 4 // 10**6)} MB\)"):
        fetch_dino(resolve_dino("vit_tiny_patch16_224.augreg_in21k", "hub"))

    def unbuildable(*_: object, **__: object) -> nn.Module:
        raise OSError("its text tower is on the hub")

    monkeypatch.setattr(open_clip, "create_model", unbuildable)
    with pytest.raises(SsrError, match=r"bring open_clip_model\.safetensors of timm/"):
        fetch_clip(resolve_clip(*CLIP))


def test_nothing_is_fetched_for_a_model_that_is_no_vit(hub: Hub, folder: Path) -> None:
    asked, _ = hub({})
    with pytest.raises(UsageError, match="resnet50 is a ResNet of a form that no adapter opens"):
        build_dino(resolve_dino("resnet50", "hub"))
    assert asked == []


# --- a hub that answers


def test_fetched_once_and_then_from_the_cache_without_a_network(
    hub: Hub, folder: Path, waited: list[float], dino_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    asked, stop = hub({url: dino_file})
    weights = resolve_dino("test_vit", "hub")
    fetch_dino(weights)
    assert asked.count(url) >= 2
    before = len(asked)
    fetch_dino(weights)
    assert len(asked) == before
    expected = load_file(dino_file)["norm.weight"]
    assert torch.equal(build_dino(weights).state_dict()["norm.weight"], expected)
    stop()
    assert torch.equal(build_dino(weights).state_dict()["norm.weight"], expected)
    assert sum(waited) < 3  # seconds: nobody waits for a hub that does not answer
    assert constants.HF_HUB_OFFLINE is False
    assert weights.provenance() == {"model": "test_vit", "weights": "hub"}


@pytest.mark.usefixtures("released")
def test_a_file_without_a_tag_has_the_statistics_of_its_models_tags(clip_file: Path) -> None:
    loaded = build_clip(resolve_clip(QUICK, str(clip_file)))
    assert loaded.model.visual.image_mean == (0.1, 0.2, 0.3)


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_clip_is_fetched_under_either_name(
    hub: Hub, folder: Path, waited: list[float], clip_state: State, tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    save_file(clip_state, file) if name.endswith(".safetensors") else torch.save(clip_state, file)
    asked, stop = hub({f"/someone/tiny/resolve/main/{name}": file})
    fetch_clip(resolve_clip(QUICK, "made"))
    stop()
    loaded = build_clip(resolve_clip(QUICK, "made"))
    assert sum(waited) < 3  # seconds: nobody waits for a hub that does not answer
    assert loaded.has_text
    assert torch.equal(loaded.model.state_dict()["visual.proj"], clip_state["visual.proj"])
    assert asked[0].endswith("open_clip_model.safetensors")


def test_a_hub_without_the_file(hub: Hub, folder: Path) -> None:
    asked, _ = hub({})
    with pytest.raises(SsrError, match=r"cannot fetch CLIP .*; bring open_clip_model\.safetensors \(599 MB\)") as caught:
        fetch_clip(resolve_clip(*CLIP))
    assert "\n" not in str(caught.value)
    assert {Path(path).name for path in asked} == {"open_clip_model.safetensors", "open_clip_pytorch_model.bin"}


def test_a_download_that_breaks_off(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub({})

    def broken(*_: object, **__: object) -> str:
        raise OSError("disk is full\nsecond line")

    monkeypatch.setattr(module, "hf_hub_download", broken)
    with pytest.raises(SsrError, match=r"cannot fetch DINO .*: disk is full; bring"):
        build_dino(resolve_dino(DINO, "hub"))
