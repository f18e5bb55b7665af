"""Reinforcement-learning instruction tuning that a researcher can trust."""

from instructrec.checkout import require_links

__version__ = "0.1.0"

require_links()
