"""Files that are complete or absent: arrays in HDF5, masks in PNG, manifests in JSON."""
