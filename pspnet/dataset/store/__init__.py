"""The prepared set on disk: encoded images and masks in Arrow shards, with the facts about them in dataset.json."""
