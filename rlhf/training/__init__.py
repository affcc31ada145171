"""Training by gradient descent: TRL's trainers behind one door, stopped before a number that is not finite."""
