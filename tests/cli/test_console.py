"""What the console prints when a run ends."""

from __future__ import annotations

import pytest
import typer

from pipelines.execution.interruption import EXIT_INTERRUPTED, Interrupted
from ssr_cli import console


def test_a_signal_while_the_last_line_is_printed_still_leaves_a_line(monkeypatch, capsys):
    def interrupt_once(*_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(console.err, "print", interrupt_once)
    with pytest.raises(typer.Exit) as ended, console.reports_errors(debug=False):
        raise Interrupted("stopped: what was computed is kept", "run the same command to go on")
    assert ended.value.exit_code == EXIT_INTERRUPTED
    assert capsys.readouterr().err.splitlines() == ["stopped: what was computed is kept; run the same command to go on"]
