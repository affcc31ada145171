"""Measurements: of reward models against held-out pairs, and of policies against held-out prompts."""
