"""AQR: weights per query, rendered onto the feature maps, which they modulate."""
