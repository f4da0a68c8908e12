"""Scores against ground truth: counts, metrics from counts, and the report with its figures."""
