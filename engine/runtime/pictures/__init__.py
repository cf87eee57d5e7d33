"""A picture that a call starts from (img2img), and a mask of what is kept of it (inpainting)."""
