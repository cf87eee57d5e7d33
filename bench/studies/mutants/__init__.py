"""Damaged inputs of `mutations.py`, and how they are made."""
