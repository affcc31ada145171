"""The Llama 2-Chat recipe: a base language model in, a chat model out. Start reading at stages/__init__.py."""

__version__ = "0.1.0"
