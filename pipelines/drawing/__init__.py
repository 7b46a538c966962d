"""Pictures of what a Vision Transformer has learned."""
