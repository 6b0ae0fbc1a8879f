"""The commands that are no stages."""
