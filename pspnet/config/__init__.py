"""The parameters of params.yaml: one module per section, and nothing here has a default."""
