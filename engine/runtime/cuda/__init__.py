"""A program on a CUDA device: what one evaluation launches is in batch.py, what a call does around it in loop.py.

capture.py captures the launches of a batch in a graph.
"""
