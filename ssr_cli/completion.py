"""Shell completion: ``--show-completion`` and ``--install-completion`` with the shell named or found out, ``--flag=value``."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import shellingham  # type: ignore[import-untyped]  # Typer brings it, and asks it too

from pipelines.errors import SsrError, UsageError

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def complete(ctx: Any, flag: str, given: Sequence[str]) -> None:
    """Do what a completion flag asks for, and exit.

    Args:
        ctx: Context of the ``ssr`` command.
        flag: ``--show-completion`` or ``--install-completion``.
        given: Nothing, or the name of a shell.

    Raises:
        typer.Exit: It cannot be done; one line has said why.
    """
    from ssr_cli.console import reports_errors

    with reports_errors(debug=False):
        shell = " ".join(given) or _this_shell()
        if shell not in SHELLS:
            found = f"found {shell!r}" if shell else "cannot tell which one this is"
            raise UsageError(f"expected one of {', '.join(SHELLS)}, {found}", f"name it: ssr {flag} bash")
        try:
            parameter = next(parameter for parameter in ctx.command.params if flag in parameter.opts)
            parameter.callback(ctx, parameter, shell)  # Typer's own, which takes a name too
        except OSError as error:
            raise SsrError(
                f"cannot write {error.filename}: {error.strerror}", f"ssr --show-completion {shell} prints it, to be sourced"
            ) from error


def _this_shell() -> str:
    try:
        return str(shellingham.detect_shell()[0])
    except Exception:  # neither /proc nor ps, no shell among the parents, an unknown system
        return ""


def prepare(environment: MutableMapping[str, str]) -> None:
    """Mend what a shell asks with, before Typer answers it.

    Bash makes the ``=`` of ``--flag=va`` a word of its own: dropped, so that the flag stands before its value. Help would
    be folded at 80 columns, and each line pass for a candidate of its own.

    Args:
        environment: The process's; ``COMP_WORDS`` has one word a line, ``COMP_CWORD`` the number of the one at the cursor.
    """
    environment["TERMINAL_WIDTH"] = "1000"
    words, cursor = environment.get("COMP_WORDS", "").split("\n"), environment.get("COMP_CWORD", "")
    if cursor.isdecimal() and 1 < int(cursor) < len(words) and words[int(cursor) - 1] == "=":
        del words[int(cursor) - 1]
        environment.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(int(cursor) - 1))
