"""What a latent means, in words, and how well the words predict it."""
