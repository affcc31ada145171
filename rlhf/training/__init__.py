"""Training by gradient descent: TRL's trainers behind their door, stopped before a number that is not finite."""
