"""Reinforcement-learning instruction tuning that a researcher can trust."""

__version__ = "0.1.0"
