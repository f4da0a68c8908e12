"""The process from which the workers of all process pools of a run are forked. It alone imports this module, and that first."""

from __future__ import annotations

import atexit
import os
import signal

from pipelines.execution.interruption import SIGNALS

# Ctrl-C and the SIGTERM of Slurm go to all processes of a run, and a pool whose server has ended is broken.
for _number in SIGNALS:
    signal.signal(_number, signal.SIG_IGN)

# When the run ends, it ends at once: it holds the run's output open, and the finalisation of its libraries takes a while.
atexit.register(os._exit, 0)

# A process that other code starts from the same server can be ended by SIGTERM.
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
