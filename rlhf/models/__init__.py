"""Models: loading and saving, and the one place a score is read."""
