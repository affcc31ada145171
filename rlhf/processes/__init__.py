"""Several processes, one run: started, checked against one another, and watched."""
