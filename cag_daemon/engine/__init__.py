"""The engine: knows torch, never LSP."""
