"""The claims of the paper as pre-registered experiments in the micro-world."""
