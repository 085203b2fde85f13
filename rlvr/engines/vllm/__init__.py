"""vLLM as an engine, in this process or in servers."""
