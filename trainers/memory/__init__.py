"""Where the weights and activations of a run live, and in what form."""
