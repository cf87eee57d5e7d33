"""What eight bits are calibrated with, and corrected by.

given.py           what a user gives: prompts, values of conditions, observations
makers.py          encoders that make conditions, of prompts and of observations alike
observations.py    a policy's observations, encoded by its own encoder
exact_parts.py     the float32 graphs of what stands beside the network
bias.py            the mean error of a layer's outputs, for its bias to take back
"""
