"""One file per subcommand, named after it."""
