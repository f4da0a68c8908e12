"""Trained models and their files: alignment heads, decoder, segmenter."""
