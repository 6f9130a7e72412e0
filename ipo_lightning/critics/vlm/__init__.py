"""Critics that put a prompt template to a multimodal model."""
