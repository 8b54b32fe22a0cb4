"""How a run lives: command line, configuration, processes, checkpoints, records, sweeps. No tensor in it."""
