"""How it is fast: nothing of it is in the paper."""
