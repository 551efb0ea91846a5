"""FP-NAS (Yan et al. 2021): a distribution over architectures is learned while a supernet of all of them is trained."""
