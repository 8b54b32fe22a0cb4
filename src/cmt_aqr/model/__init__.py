"""CMT: from a batch to predictions. Knows nothing of training or data."""
