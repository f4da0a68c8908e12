"""The bridge to mmsegmentation: networks, configs, training. Nothing of it is imported but by `ssr retrain` and its models."""
