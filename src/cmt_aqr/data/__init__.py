"""From nuScenes tables to batches: index, reading, sampling, augmentation, sensor faults and collation."""
