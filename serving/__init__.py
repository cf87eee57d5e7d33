"""Engines behind HTTP: one application, run by one process or by Ray Serve.

app -> routes -> hosts -> (worker -> batching -> engine) or (Ray -> the same in a replica). `orders` holds what goes
between them: an Order comes from a request, a Drawn goes into its answer.
"""
