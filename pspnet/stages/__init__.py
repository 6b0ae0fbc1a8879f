"""One module per stage of dvc.yaml: paths and parameters in, one versioned directory out."""
