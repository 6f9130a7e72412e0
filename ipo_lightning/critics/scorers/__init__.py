"""Critics that compute a score: reward networks, image scorers, gauges."""
