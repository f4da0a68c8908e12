"""Devices, pools, batches, progress and failures."""
