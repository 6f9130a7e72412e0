"""Parts of the training step: forwards and errors, loss terms, learning rate."""
