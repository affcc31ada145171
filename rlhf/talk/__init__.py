"""Talking to policies: the conversation, and where it is held: a terminal, a pipe, a local page."""
