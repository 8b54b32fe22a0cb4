"""Decoding, submission files and nuScenes' own evaluation."""
