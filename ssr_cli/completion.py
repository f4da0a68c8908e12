"""Shell completion: ``--show-completion`` and ``--install-completion``, with the shell named or detected; ``--flag=value``."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import shellingham  # type: ignore[import-untyped]  # a dependency of Typer

from pipelines.errors import SsrError, UsageError

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def complete(ctx: Any, flag: str, arguments: Sequence[str]) -> None:
    """Show or install the completion of a shell, and exit.

    Args:
        ctx: Context of the ``ssr`` command.
        flag: ``--show-completion`` or ``--install-completion``.
        arguments: Empty, or the name of a shell.

    Raises:
        typer.Exit: The shell is unknown or a file cannot be written; one line on stderr says so.
    """
    from ssr_cli.console import reports_errors

    with reports_errors(debug=False):
        shell = " ".join(arguments) or _this_shell()
        if shell not in SHELLS:
            found = f"found {shell!r}" if shell else "cannot tell which one this is"
            raise UsageError(f"expected one of {', '.join(SHELLS)}, {found}", f"name it: ssr {flag} bash")
        try:
            parameter = next(parameter for parameter in ctx.command.params if flag in parameter.opts)
            parameter.callback(ctx, parameter, shell)  # Typer's callback takes the name of a shell
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
    """Correct the environment of a completion request before Typer reads it.

    Bash splits ``--flag=va`` into three words: the ``=`` is dropped, so that the value follows its flag. The width is set to
    1000, because help that is folded at 80 columns would count as several candidates.

    Args:
        environment: Environment of the process; ``COMP_WORDS`` has one word a line, ``COMP_CWORD`` is the index of the word at
            the cursor.
    """
    environment["TERMINAL_WIDTH"] = "1000"
    words, cursor = environment.get("COMP_WORDS", "").split("\n"), environment.get("COMP_CWORD", "")
    if cursor.isdecimal() and 1 < int(cursor) < len(words) and words[int(cursor) - 1] == "=":
        del words[int(cursor) - 1]
        environment.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(int(cursor) - 1))
