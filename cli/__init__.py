"""The command line: a file for each command, and what they share: options, values, networks, progress, figures."""

from .entry import app as app
from .entry import main as main
