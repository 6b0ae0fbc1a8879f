"""Code shared by both training loops: batches, optimizer, checkpoint, several devices, reproducible bits."""
