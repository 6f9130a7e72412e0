"""What a run takes: memory by stage, operations, published costs."""
