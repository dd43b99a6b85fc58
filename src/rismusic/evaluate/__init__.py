"""Looking at results: plots now, metrics and reports as they come."""
