"""Critics that compute a score: reward models, image scorers, gauges."""
