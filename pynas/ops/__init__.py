"""Operations of networks: batch-norm over several ranks and what sums over them. Imports torch and numpy alone."""
