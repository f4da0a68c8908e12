"""The work directory: places, memory, settings compared, outputs opened and resumed."""
