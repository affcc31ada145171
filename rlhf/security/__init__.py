"""What comes from others is looked at before it is read."""
