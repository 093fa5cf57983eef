"""Tokens of a vocabulary: words that an LLM has, templates of new tokens, ordinary text, look-ups on a device."""
