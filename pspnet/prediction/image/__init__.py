"""Turns an image into class probabilities of the same size. Every prediction in the project is computed here."""
