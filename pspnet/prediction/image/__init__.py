"""One image -> class probabilities of its size. Every result is computed here."""
