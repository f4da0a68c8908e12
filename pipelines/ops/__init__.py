"""Pure functions on tensors and arrays, one idea a file; they know no files, no config, no dataset."""
