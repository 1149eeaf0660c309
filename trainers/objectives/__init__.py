"""What the network is asked to predict, how noise is added, how an error counts."""
