"""From raw files to samples that training and evaluation read."""
