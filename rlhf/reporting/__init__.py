"""The pieces of the report: its text, its plots, its page."""
