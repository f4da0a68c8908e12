"""Frozen backbones: tokens, attention, embeddings, and where their weights come from."""
