"""The front: knows LSP, never torch."""
