"""What is measured: training health, win rates, gauges of videos, agreement."""
