"""Learning graphs by gradients: DiBS over latent graphs, NOTEARS and DAGMA as point estimates."""
