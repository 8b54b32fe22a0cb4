"""Decoding, the official nuScenes metrics and results files."""
