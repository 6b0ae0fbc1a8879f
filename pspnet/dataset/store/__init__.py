"""The prepared set on disk: encoded images and masks in Arrow shards, and dataset.json, the facts about them."""
