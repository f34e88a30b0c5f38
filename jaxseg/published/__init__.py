"""Published PyTorch weights as parameter trees of the networks here."""
