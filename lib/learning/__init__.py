"""Learning with labels, and without labels by pretext tasks."""
