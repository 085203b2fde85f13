"""`vllm serve` servers: started here or found by URL, one pool."""
