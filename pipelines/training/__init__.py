"""The training of the parts in `pipelines.models`."""
