"""Learning with labels."""
