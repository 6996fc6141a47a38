"""Learning with labels, and without: by questions that images answer themselves."""
