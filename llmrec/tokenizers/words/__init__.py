"""Parts of methods that write items in words of an LLM, such as titles and keywords."""
