"""The hybrid network that predicts the covariance of the field on the panel, and what it learns by."""
