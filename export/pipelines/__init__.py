"""What a diffusers folder or pipeline holds beside its denoiser: schedulers, prompts, LoRA and other changes."""
