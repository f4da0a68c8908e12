"""The ``ssr`` command line: parses, shows progress, prints, sets exit codes."""
