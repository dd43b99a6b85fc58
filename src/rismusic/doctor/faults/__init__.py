"""Mistakes that systems of this kind have made, planted one at a time: does the doctor find them?"""
