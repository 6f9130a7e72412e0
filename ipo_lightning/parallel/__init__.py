"""Many processes and devices: shared work, sharded and offloaded weights, averages."""
