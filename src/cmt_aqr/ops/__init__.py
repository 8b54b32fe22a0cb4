"""Fast operators; nothing here is specific to the paper."""
