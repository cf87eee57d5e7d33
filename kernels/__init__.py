"""The ops that run on the device between two network evaluations, and their plain twins in `eager`.

step (the fused update), noise (the start), images (the end), table (what the device reads), ahead (compilation without
a GPU). Imports nothing else of pfdiff.
"""
