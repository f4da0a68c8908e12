"""How the parts in `pipelines.models` are trained."""
