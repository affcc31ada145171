"""The doctor: reads all data of a recipe before anything is trained, and shows which tokens would bear loss."""
