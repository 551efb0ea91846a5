"""Images: what a data set is, where it comes from, and batches of it. `config` and `fetch` import no torch."""
