"""What samples completions: one protocol; transformers, vLLM in process, `vllm serve` servers."""
