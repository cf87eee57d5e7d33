"""What commands print: progress bars, figures."""
