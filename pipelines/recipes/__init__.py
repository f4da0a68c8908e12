"""Named sets of options that ship with the package."""
