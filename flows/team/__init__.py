"""The flows for a team: `pspnet deploy` installs them on a Prefect server, and workers in several pools run them."""
