"""Robot policies: saved action-diffusion policies become networks with an observation encoder."""
