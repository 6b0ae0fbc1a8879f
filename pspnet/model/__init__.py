"""PSPNet (Zhao et al., 2017) and the files its weights live in."""
