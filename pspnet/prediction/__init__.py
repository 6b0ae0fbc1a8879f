"""From images to masks: a single image, a folder of images, a benchmark submission, or an export for other runtimes.

Images and networks go in, class probabilities and masks come out. May import `raw` and everything below. Start at
`image/predictor.py`. Safe to change: `image_folder.py` (`pspnet predict`), `output_folder.py`, `submission.py`,
`export.py`; an edit in `image/` changes every measurement.
"""
