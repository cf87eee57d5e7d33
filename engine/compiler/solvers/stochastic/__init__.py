"""Solvers that draw noise on the way, among them those of distilled networks: LCM, TCD, consistency."""
