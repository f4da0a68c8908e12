"""The work directory: its paths, remembered options and settings, and outputs that are opened and resumed."""
