"""From nuScenes tables to batches: index, reading, augmentation, collation, and the synthetic data maker."""
