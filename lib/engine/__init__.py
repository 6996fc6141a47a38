"""What makes a training go: the loop, its seeds, processes, log and checkpoints."""
