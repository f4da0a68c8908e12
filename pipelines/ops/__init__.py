"""Pure functions on tensors and arrays, one idea in each file; they use no files, no configuration and no dataset."""
