"""The report: a page that shows which route leaks, and all that is on it as JSON."""
