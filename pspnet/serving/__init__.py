"""A registered version answering requests, with the code it was saved with."""
