"""From images to masks: a single image, a folder of images, a benchmark submission, or an export to other runtimes.

Takes images and networks, and returns class probabilities and masks. May import `raw` and everything below. Start at
`image/predictor.py`. Safe to change: `image_folder.py` (`pspnet predict`), `output_folder.py`, `submission.py`,
`export.py`. An edit in `image/` affects every score.
"""
