"""Networks with named taps, as pure functions of parameters and images (or latents)."""
