"""The bridge to mmsegmentation: networks, configs, training. Only `ssr retrain` and its models import it."""
