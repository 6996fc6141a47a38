"""Ratios of two versions, measured alternately in one run."""
