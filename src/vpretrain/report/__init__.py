"""The report: runs and comparisons as one HTML file."""
