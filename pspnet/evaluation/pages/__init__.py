"""What the pages of evaluation and pretraining share: the style, the charts, and pictures within the page."""
