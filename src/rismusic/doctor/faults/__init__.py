"""Mistakes that systems of this kind have made, planted one at a time, to see whether the doctor finds them."""
