"""Files that are whole or absent: arrays in HDF5, masks in PNG, provenance in JSON."""
