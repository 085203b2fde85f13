"""A pool of `vllm serve` servers, started by the run or given by URL."""
