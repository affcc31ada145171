"""What a killed stage goes on from, and how it is written so that a kill at any moment leaves the same model."""
