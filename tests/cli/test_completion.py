"""Completion as the shells ask for it: by environment variables, and in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shellingham

from ssr_cli.app import COMMANDS
from ssr_cli.completion import SHELLS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "open_clip", "timm", "numpy", "h5py")
PROGRAM = f"""\
#!{sys.executable}
import pathlib, sys
from ssr_cli.app import main
try:
    main()
finally:
    heavy = [name for name in {HEAVY} if name in sys.modules]
    pathlib.Path(__file__).with_name("heavy").write_text(" ".join(heavy))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``ssr`` to put on the path; beside it, the file ``heavy`` says what it imported."""
    path = tmp_path_factory.mktemp("bin") / "ssr"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


def surroundings(program: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("_TYPER", "COMP_"))}
    return {**kept, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **more}


def asked(program: Path, line: str, shell: str, action: str = "get-args") -> subprocess.CompletedProcess[str]:
    words = line.split(" ")
    by_bash = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    by_others = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": action}
    environment = surroundings(program, _SSR_COMPLETE=f"complete_{shell}", **(by_bash if shell == "bash" else by_others))
    return subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ssr ", list(COMMANDS)),
        ("ssr ca", ["cams"]),
        ("ssr zz", []),
        ("ssr --show", ["--show-completion"]),
        ("ssr cams --re", ["--recipe", "--readout", "--resclip-share", "--resclip-feedback"]),
        ("ssr cams --readout ", ["gradcam", "dense", "mix", "calibrated", "excel", "resclip"]),
        ("ssr cams --readout d", ["dense"]),
        ("ssr cams vo", ["voc"]),
        ("ssr cams voc --recipe clip", ["clip-es", "clip-es-coco"]),
        ("ssr refine --superpixel-mask=c", ["colour", "cluster"]),
        ("ssr refine --superpixel-mask = c", ["colour", "cluster"]),  # bash's own way to split it
        ("ssr refine --superpixel-mask =", ["none", "colour", "gate", "cluster", "token"]),
        ("ssr labels --from ", ["xml", "coco", "masks", "csv", "npy", "folders", "yolo"]),
        ("ssr cams --config run", []),  # nothing of ours: the shell completes files
    ],
)
def test_bash(program, line, expected):
    done = asked(program, line, "bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected
    assert (program.parent / "heavy").read_text() == ""


def test_zsh(program):
    assert asked(program, "ssr ca", "zsh").stdout.startswith('_arguments \'*: :(("cams":"3 Make class activation maps')
    assert (
        asked(program, "ssr cams --readout ", "zsh").stdout
        == '_arguments \'*: :(("gradcam"\n"dense"\n"mix"\n"calibrated"\n"excel"\n"resclip"))\'\n'
    )
    assert asked(program, "ssr cams --config ", "zsh").stdout == "_files\n"


def test_fish(program):
    lines = asked(program, "ssr cams --", "fish").stdout.splitlines()
    assert "--readout" in {line.split("\t")[0] for line in lines}
    assert all(line.startswith("--") for line in lines)  # help in one line each: a second one would be a candidate
    assert any(len(line) > 90 for line in lines)
    assert [asked(program, f"ssr cams {word}", "fish", "is-args").returncode for word in ("--re", "--config ")] == [0, 1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash(program, tmp_path):
    script = """
    source <(ssr --show-completion bash)
    complete -p ssr
    answer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _ssr_completion ssr; echo "$#: ${COMPREPLY[*]}"; }
    answer ssr ca
    answer ssr cams --readout ""
    answer ssr refine --superpixel-mask = co
    answer ssr cams --work ""
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=surroundings(program), cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o default -F _ssr_completion ssr",  # default: file names where we have nothing to say
        "2: cams",
        "4: gradcam dense mix calibrated excel resclip",
        "5: colour",
        "4: ",
    ]


@pytest.mark.parametrize("shell", SHELLS[:3])
def test_show_and_install(ssr, tmp_path, monkeypatch, shell):
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = ssr("--show-completion", shell).out
    assert f"_SSR_COMPLETE=complete_{shell}" in shown
    monkeypatch.setattr(shellingham, "detect_shell", lambda: (shell, f"/bin/{shell}"))
    assert ssr("--show-completion").out == shown
    assert f"{shell} completion installed in {tmp_path}" in ssr("--install-completion").out
    assert any(shown.strip() in path.read_text() for path in tmp_path.rglob("*ssr*"))


def unknown() -> None:
    raise shellingham.ShellDetectionFailure


def broken() -> None:
    raise OSError("no /proc, no ps")


@pytest.mark.parametrize("flag", ["--show-completion", "--install-completion"])
@pytest.mark.parametrize(
    ("detected", "given", "said"),
    [
        (unknown, (), "cannot tell which one this is"),
        (broken, (), "cannot tell which one this is"),
        (lambda: ("tcsh", "/bin/tcsh"), (), "found 'tcsh'"),
        (lambda: ("bash", "bash"), ("nu",), "found 'nu'"),
    ],
)
def test_a_shell_that_is_not_known_is_one_line(ssr, tmp_path, monkeypatch, flag, detected, given, said):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shellingham, "detect_shell", detected)
    ran = ssr(flag, *given, code=2)
    assert ran.out == ""
    assert ran.err == f"error: expected one of {', '.join(SHELLS)}, {said} (name it: ssr {flag} bash)\n"
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written(ssr, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    ran = ssr("--install-completion", "bash", code=1)
    assert ran.err.startswith(f"error: cannot write {tmp_path / 'file'}")
    assert "ssr --show-completion bash" in ran.err
    assert "Traceback" not in ran.text
