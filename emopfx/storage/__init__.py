"""Where activations are, and whether they are whole."""
