"""What is known of every latent: the table, Latent Scaling, held-out metrics, pairs, labelled concepts."""
