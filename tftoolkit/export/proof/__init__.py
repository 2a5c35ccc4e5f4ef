"""Is the file right? Structure, parity, metric, latency, memory."""
