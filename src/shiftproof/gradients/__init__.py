"""Gradients of domains, of samples and of layers, and passes through a model that leave no trace in it."""
