"""The search of settings of training and inference."""
