"""What searches of every method share: the configuration of a study, opening it, trainings, winners, status."""
