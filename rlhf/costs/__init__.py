"""What a run will cost, before anything is loaded: bytes, tokens, operations, hours. Torch-free."""
