"""What is trained: alignment heads."""
