"""What every test stands on: no network, no weights that lie about, one thread; and the fixtures in fixtures/."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network is wrong
os.environ["SSR_WEIGHTS"] = os.devnull  # nor does it find weights that lie about
os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads differ in their last bits; processes of tests inherit this
os.environ.pop("FORCE_COLOR", None)

SUBJECTS = ("lanes", "shared", "models", "datasets", "commands", "forks", "plain_figures", "workspaces", "trainings", "odd")
pytest_plugins = [f"tests.fixtures.{subject}" for subject in SUBJECTS]
