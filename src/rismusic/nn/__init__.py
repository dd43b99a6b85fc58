"""The network that predicts the covariance of the field on the panel, its losses and its training."""
