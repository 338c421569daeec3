"""What engines that read Hugging Face checkpoints share: tokenizer and texts, and GGUF files converted once.

Transformers is imported only inside functions.
"""
