"""Official checkpoints in and out."""
