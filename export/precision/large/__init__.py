"""Graphs of more than 2 GiB, which one protobuf message does not hold.

outside.py   weights stay in their file while the graph is rewritten, run and written
"""
