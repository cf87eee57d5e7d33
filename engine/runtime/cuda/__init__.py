"""A program on a CUDA device: loop.py prepares and replays, batch.py holds what is captured, capture.py captures it."""
