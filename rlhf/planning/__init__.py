"""What a run would do and why, before anything is loaded: steps, decisions, room on the disk."""
