"""Claims about speed, and about old code: each file prints what it measured."""
