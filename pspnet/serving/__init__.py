"""Serves a version with the code it was saved with, and provides a client for such a version.

`server.py`, `service.py`, `worker.py` and `model.py` run inside a version; `client.py` and `process.py` start them. May
import `training` and everything below it. Start at `service.py`, where a request becomes rows. Careful: today's
`client.py` talks to versions registered long ago, so each side must understand what the other sends.
"""
