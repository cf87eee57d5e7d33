"""What several families share: patches, rotary embeddings, sigmas of their own, inpainting."""
