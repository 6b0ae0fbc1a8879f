"""One image -> class probabilities of the same size. Every result is computed here."""
