"""Engines that sample completions behind one protocol: transformers, vLLM in process, `vllm serve` servers."""
